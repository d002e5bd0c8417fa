"""The general sections: the run, its clients and rounds, training, the network and the server."""

import re
from typing import Literal

from pydantic import Field

from common.sections.networks import BackboneName, norm_mistake, position_mistakes, weight_mistakes
from common.settings import DistinctInts, DistinctWords, Settings, like

PATIENCE = 3600.0  # real seconds that a client may take, unless `round.deadline` says otherwise
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")  # of a run; methods name stores after it
TRACKERS = ("csv", "tensorboard", "mlflow", "wandb")
Device = Literal["auto", "cpu", "cuda"]


class RunSection(Settings):
    """What is run, and where it is kept."""

    SECTION = "run"

    name: str = ""
    """name of the run and of its folder; empty: made from the strategy and the time"""
    strategy: str = "darkdistill"
    """the method"""
    seed: int = Field(1, ge=0, le=2**63 - 1)  # the largest whole number that Flower can send
    """seed of everything random"""
    fast: bool = False
    """quicker kernels on GPUs, with which two runs differ in their last bits"""
    rounds: int = Field(10, ge=1)
    """rounds of training"""
    root: str = ""
    """absolute folder that holds all runs; empty: `runs` beside Flower's home"""
    resume: str = ""
    """folder of a run: continue it from its last complete round"""
    commit: str = ""
    """git commit, which the launcher fills in: the installed bundle does not know it"""
    trackers: DistinctWords = ()
    """experiment trackers that get the numbers too: csv, tensorboard, mlflow, wandb; empty: none"""
    metrics_port: int = Field(0, ge=0, le=65535)
    """port of the Prometheus metrics; 0: none"""
    metrics_host: str = "127.0.0.1"
    """address to serve them at"""
    log_format: Literal["text", "json"] = "text"
    """form of the log; json: an object per line, on the server and on the clients"""

    def other_mistakes(self) -> list[str]:
        """Check the name, which is a folder's too, and the trackers."""
        found = []
        if self.name and not NAME.fullmatch(self.name):
            found.append(
                f"run.name is {self.name!r}, must be letters, digits, '.', '_' and '-', 80 at most, with a letter or "
                "digit first"
            )
        for name in self.trackers:
            if name not in TRACKERS:
                found.append(f"run.trackers has {name!r}, must be of {', '.join(TRACKERS)}{like(name, TRACKERS)}")
        return found


class ClientsSection(Settings):
    """The virtual or real clients and how they are hosted."""

    SECTION = "clients"

    count: int = Field(20, ge=1)
    """number of clients; in a simulation they are virtual, real devices count themselves"""
    per_round: int = Field(8, ge=1)
    """clients sampled per round"""
    per_node: int = Field(0, ge=0)
    """clients that one node hosts; 0: any node may host any virtual client"""
    mix: str = "auto"
    """share of clients per depth tier: 0.5,0.3,0.2, equal, small, large; auto: by clients.devices, else equal"""
    clock: Literal["measured", "simulated"] = "measured"
    """how long a client takes: measured here, or simulated from its device's profile"""
    devices: str = ""
    """devices that the virtual clients are, with shares, such as pi4:0.6,laptop:0.4; empty: none in particular"""
    profiles: str = ""
    """TOML file with profiles of your own for clients.devices; empty: the known ones alone"""
    time_spread: float = Field(0.0, ge=0, le=3)
    """simulated: sigma of the lognormal factor on a client's time, drawn anew in every round; 0: none"""
    device: Device = "auto"
    """where clients compute"""
    threads: int = Field(1, ge=1)
    """torch threads per client"""
    autocast: bool = False
    """clients compute in bf16"""
    store: str = ""
    """folder for what clients keep; empty: .cache/clients, beside Flower's home, or in run.root of a simulation here"""
    state: Literal["node", "shared", "server"] = "node"
    """where what clients keep counts: on its node, in a shared store, or with the server"""

    def other_mistakes(self) -> list[str]:
        """Check the sample's size and the store."""
        found = []
        if self.per_round > self.count:
            found.append(f"clients.per-round is {self.per_round}, must be at most clients.count, {self.count}")
        if self.state == "shared" and not self.store:
            found.append("clients.state is 'shared': set clients.store to the folder that all machines share")
        if self.profiles and not self.devices:
            found.append(f"clients.profiles is {self.profiles!r}, but clients.devices is empty: name the devices there")
        if self.devices and self.mix != "auto" and self.clock != "simulated":
            found.append(
                f"clients.devices is {self.devices!r}, but clients.mix decides the depths and clients.clock is "
                "'measured': set clients.mix to auto, or clients.clock to simulated"
            )
        if self.time_spread and self.clock != "simulated":
            found.append(f"clients.time-spread is {self.time_spread:g}, but clients.clock is 'measured': set it to 0")
        return found


class TrainSection(Settings):
    """Local training; defaults of DarkDistill's experiments but for the schedule, which suits small runs."""

    SECTION = "train"

    epochs: int = Field(1, ge=0)
    """local epochs per round"""
    batch_size: int = Field(32, ge=2)
    """samples per batch"""
    lr: float = Field(0.05, ge=0)
    """learning rate of the first round (SGD)"""
    lr_decay: float = Field(0.99, gt=0)
    """factor on the learning rate per round"""
    momentum: float = Field(0.9, ge=0)
    """momentum of SGD"""
    weight_decay: float = Field(1e-4, ge=0)
    """weight decay of SGD"""


class NetworkSection(Settings):
    """Which early-exit network, and where its exits and tiers are."""

    SECTION = "network"

    name: BackboneName = "resnet_slim"
    """the backbone, or the function that makes one"""
    exits: DistinctInts = ()
    """units before each exit, rising, the last one all units; empty: the backbone's own"""
    tiers: DistinctInts = ()
    """exits of each depth tier, rising, the last one all exits; empty: every exit ends a tier"""
    width: int = Field(0, ge=0)
    """first stage's channels, embedding length, or a Wide ResNet's factor; 0: the backbone's own"""
    norm: Literal["batch", "group"] = "batch"
    """group: GroupNorm for batch norm, in plain networks after each convolution; not for transformers"""
    lora_rank: int = Field(0, ge=0)
    """rank of the adapters; 0: train every parameter. Frozen weights travel down, not up"""
    pretrained: str = ""
    """a .safetensors file or a Hugging Face hub id; empty: random weights"""

    def other_mistakes(self) -> list[str]:
        """Check everything against the backbone."""
        found = position_mistakes(self.name, self.exits, self.tiers)
        found += weight_mistakes(self.name, self.lora_rank, self.pretrained)
        return found + [problem for problem in [norm_mistake(self.name, self.norm)] if problem]


class RoundSection(Settings):
    """When a round is good enough, and when it is given up."""

    SECTION = "round"

    quorum: float = Field(0.5, ge=0, le=1)
    """share of the sampled clients that must answer"""
    deadline: float = Field(PATIENCE, gt=0)
    """seconds that a client may take, by clients.clock"""
    min_nodes: int = Field(1, ge=1)
    """nodes that must be there before the first round"""
    wait: float = Field(120.0, ge=0)
    """seconds to wait for them"""
    staleness: float = Field(0.0, ge=0, le=1)
    """weight of an answer per round that it is late; 0: it is dropped"""
    transport: Literal["stream", "messages"] = "stream"
    """way of a deployment's orders and replies: own streams, or Flower's messages alone"""


class ServerSection(Settings):
    """The server's own work: distillation and evaluation."""

    SECTION = "server"

    device: Device = "auto"
    """where the server computes"""
    threads: int = Field(1, ge=1)
    """torch threads of the server"""
    autocast: bool = False
    """the server computes in bf16"""
    evaluate_every: int = Field(1, ge=0)
    """rounds between evaluations on the server; 0: never"""
    clients_evaluate_every: int = Field(0, ge=0)
    """rounds between evaluations on the clients; 0: never"""
    batch_size: int = Field(256, ge=1)
    """samples per batch of an evaluation"""
    accuracy_loss: float = Field(0.01, ge=0)
    """accuracy that calibrated exit thresholds may lose on validation data"""
