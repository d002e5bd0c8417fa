"""What the network costs split training: samples per second over streams against the same training without streams.

Two clients with a device process each, or both in one process, stream over loopback to a server in this process. The
reference trains the same networks in this process alone. Rounds alternate between the ways, so that other work on the
machine affects all of them alike, and neighbouring rounds are compared. Run `python -m benchmarks.split`;
`--what speed`, `bytes` or `memory` measures one part.
"""

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import grpc
import torch
from torch import Tensor

from benchmarks.common import RESULTS, Meter, save
from benchmarks.memory import tensor_bytes
from common.config import RunConfig
from common.networks import EarlyExitNetwork, NetworkSpec, build, without_early_exits
from common.rpc.certificates import self_signed
from common.rpc.channels import connect, new_token, serve
from common.sections.stream import StreamSettings
from common.storage.client_store import ClientStore
from strategies.configuration import read_config
from strategies.hetero_splitee.client_step import finish, forward, local_step
from strategies.hetero_splitee.inbox import Batch, Inbox, OpenRound
from strategies.hetero_splitee.learner import Learner, Sgd, device_part
from strategies.hetero_splitee.server_model import make_server_model
from strategies.hetero_splitee.service import Expected, SplitService
from strategies.hetero_splitee.settings import SplitEESettings
from strategies.hetero_splitee.stream import FeatureStream, Origin
from strategies.hetero_splitee.trainer import Trainer

SHAPE, CLASSES, CLIENTS, RUN = (3, 32, 32), 10, (0, 1), "split"
CUTS = {"resnet_slim": (1, 3), "resnet18": (3, 7)}
BATCH = {"resnet_slim": 64, "resnet18": 32}
BATCHES = {"resnet_slim": 8, "resnet18": 2}  # of a client in a round
HELD = (2, 8, 16, 32, 64)  # clients in a round
MB = 2**20


@dataclass(frozen=True)
class Case:
    """A network, its cut and the settings of split training."""

    network: str
    cut: int
    mode: str = "sequential"
    coding: str = "fp32"
    gradient: str = "stop"

    @property
    def config(self) -> RunConfig:
        """The run's configuration."""
        keys = {"mode": self.mode, "coding": self.coding, "gradient": self.gradient, "aggregate-scope": "server"}
        flat = {"train.batch-size": BATCH[self.network], "train.lr": 0.01}
        return read_config(flat | {f"splitee.{key}": value for key, value in keys.items()})

    @property
    def sgd(self) -> Sgd:
        """The optimiser of the devices and of the reference."""
        train = self.config.train
        return Sgd(train.lr, train.momentum, train.weight_decay)

    def build(self) -> EarlyExitNetwork:
        """Return the whole network."""
        return build(without_early_exits(NetworkSpec(self.network, CLASSES, SHAPE)), seed=1).train()

    def data(self, client: int) -> tuple[Tensor, Tensor]:
        """Return a client's samples (N, C, H, W) and labels (N,)."""
        source, size = torch.Generator().manual_seed(client), BATCH[self.network] * BATCHES[self.network]
        return torch.randn(size, *SHAPE, generator=source), torch.randint(CLASSES, (size,), generator=source)

    def batches(self, client: int) -> tuple[tuple[Tensor, Tensor], ...]:
        """Return a client's batches of a round, samples (B, C, H, W) and labels (B,) each."""
        size, (x, y) = BATCH[self.network], self.data(client)
        return tuple(zip(x.split(size), y.split(size), strict=True))


class Counter(grpc.StreamStreamClientInterceptor):
    """Counts the bytes that a channel sends."""

    def __init__(self) -> None:
        self.bytes = 0

    def intercept_stream_stream(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        """Pass every message on and count it."""
        return continuation(client_call_details, self._count(request_iterator))

    def _count(self, messages: Iterator[bytes]) -> Iterator[bytes]:
        for message in messages:
            self.bytes += len(message)
            yield message


@dataclass(frozen=True)
class Place:
    """A server's address, and the clients of a case that a device process trains there."""

    case: Case
    clients: tuple[int, ...]
    address: str
    token: str
    certificate: bytes | None


class Device:
    """What a device process keeps of one place from round to round."""

    def __init__(self, place: Place) -> None:
        self.case, self.clients, self.counter = place.case, place.clients, Counter()
        network = self.case.build()
        self.learners = {
            c: Learner.copy_of(device_part(network, self.case.cut), torch.device("cpu")) for c in self.clients
        }
        self.data = {c: self.case.batches(c) for c in self.clients}
        self.channel = grpc.intercept_channel(connect(place.address, place.token, place.certificate), self.counter)

    def run(self, round_: int) -> int:
        """Train a round, the clients in turn; return the bytes that were sent."""
        before = self.counter.bytes
        streams = {
            c: FeatureStream(self.channel, Origin(RUN, c, self.case.cut, round_), coding=self.case.coding)
            for c in self.clients
        }
        for batch in range(BATCHES[self.case.network]):
            _turn(self.case, self.learners, streams, {c: self.data[c][batch] for c in self.clients})
        for stream in streams.values():
            stream.finish()
            stream.close()
        return self.counter.bytes - before


def device(pipe: Connection) -> None:
    """Train the rounds that the pipe orders as `(place, round)`; answer each with the bytes that were sent."""
    torch.set_num_threads(1)
    kept: dict[Place, Device] = {}
    while order := pipe.recv():
        place, round_ = order
        if place not in kept:
            kept[place] = Device(place)
        pipe.send(kept[place].run(round_))


def _turn(
    case: Case,
    devices: dict[int, Learner],
    streams: dict[int, FeatureStream],
    batches: dict[int, tuple[Tensor, Tensor]],
) -> None:
    """Train one batch per client, as `client.SplitTraining` does."""
    sgd = case.sgd
    if case.gradient == "stop":
        for c, (x, y) in batches.items():
            streams[c].send(local_step(devices[c], sgd, x, y)[0], y)
        return
    outputs = {c: forward(devices[c], x) for c, (x, _) in batches.items()}
    sent = {c: streams[c].send(outputs[c].trunk.detach(), y) for c, (_, y) in batches.items()}
    for c, (_, y) in batches.items():
        gradient = streams[c].wait_gradient(sent[c], outputs[c].trunk.shape)
        finish(devices[c], sgd, outputs[c], y, gradient)


class Processes:
    """A device process per client; each trains at the place that an order names."""

    def __init__(self) -> None:
        self.pipes: list[Connection] = []
        for _ in CLIENTS:
            ours, theirs = multiprocessing.Pipe()
            multiprocessing.get_context("spawn").Process(target=device, args=(theirs,)).start()
            self.pipes.append(ours)

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *_: object) -> None:
        for pipe in self.pipes:
            pipe.send(None)


class Streams:
    """A server in this process, and device processes that train its clients."""

    def __init__(
        self, case: Case, processes: Processes, nodes: Sequence[tuple[int, ...]], folder: str, *, tls: bool
    ) -> None:
        """`nodes`: the clients of each device process."""
        network, store = case.build(), ClientStore(Path(folder), "server")
        self.case, self.processes = case, processes
        self.model = make_server_model(network, case.config.of(SplitEESettings), torch.device("cpu"), store)
        shape = tuple(network.features_at(network.example(1), case.cut).shape[1:])
        self.service = SplitService(Expected(RUN, {case.cut: shape}, CLASSES, BATCH[case.network]), coding=case.coding)
        pair, token = self_signed(["127.0.0.1"]) if tls else None, new_token()
        self.server = serve(self.service.register, "127.0.0.1:0", token, pair)
        certificate = pair.certificate if pair else None
        self.places = [Place(case, node, f"127.0.0.1:{self.server.port}", token, certificate) for node in nodes]

    def run(self, round_: int) -> int:
        """Train a round; return the bytes that the devices sent."""
        case, stream = self.case, StreamSettings()
        cuts = {client: case.cut for place in self.places for client in place.clients}
        inbox = Inbox(OpenRound(RUN, round_, 0, cuts, stream.window, case.gradient == "return"))
        self.model.open_round(round_, cuts, case.sgd)
        self.service.open(inbox)
        trainer = Trainer(
            self.model, inbox, dict.fromkeys(cuts, BATCHES[case.network]), 1, "batch",
            together=case.mode == "averaging", patience=600.0, num_threads=1, seed=1, device=torch.device("cpu"),
        ).start()  # fmt: skip
        pipes = self.processes.pipes[: len(self.places)]
        for place, pipe in zip(self.places, pipes, strict=True):
            pipe.send((place, round_))
        sent: int = sum(pipe.recv() for pipe in pipes)
        samples = trainer.finish().samples
        self.service.close()
        self.model.close_round(samples, {})
        return sent


class InProcess:
    """The same training in this process, without streams."""

    def __init__(self, case: Case, folder: str) -> None:
        network, cpu, store = case.build(), torch.device("cpu"), ClientStore(Path(folder), "reference")
        self.case, self.sgd, self.data = case, case.sgd, {c: case.batches(c) for c in CLIENTS}
        self.learners = {c: Learner.copy_of(device_part(network, case.cut), cpu) for c in CLIENTS}
        self.model = make_server_model(network, case.config.of(SplitEESettings), cpu, store)

    def run(self, round_: int) -> None:
        """Train a round."""
        self.model.open_round(round_, dict.fromkeys(CLIENTS, self.case.cut), self.sgd)
        for batch in range(BATCHES[self.case.network]):
            self._turn({c: self.data[c][batch] for c in CLIENTS})
        samples = BATCH[self.case.network] * BATCHES[self.case.network]
        self.model.close_round(dict.fromkeys(CLIENTS, samples), {})

    def _turn(self, batches: dict[int, tuple[Tensor, Tensor]]) -> None:
        """Train one batch per client."""
        if self.case.gradient == "stop":
            sent = {c: local_step(self.learners[c], self.sgd, x, y)[0] for c, (x, y) in batches.items()}
            self.model.step_many({c: (sent[c], y) for c, (_, y) in batches.items()})
            return
        outputs = {c: forward(self.learners[c], x) for c, (x, _) in batches.items()}
        results = self.model.step_many({c: (outputs[c].trunk.detach(), y) for c, (_, y) in batches.items()})
        for c, (_, y) in batches.items():
            gradient = results[c].gradient
            assert gradient is not None
            finish(self.learners[c], self.sgd, outputs[c], y, gradient)


def speed(case: Case, processes: Processes, repeats: int) -> dict[str, dict[str, float]]:
    """Return the seconds per 1000 samples of each way, and its speed over the reference's."""
    number = len(CLIENTS) * BATCH[case.network] * BATCHES[case.network]
    apart, shared = [(c,) for c in CLIENTS], [CLIENTS]
    laps: dict[str, list[tuple[float, float, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        streams = {
            "2 devices, TLS": Streams(case, processes, apart, f"{folder}/0", tls=True),
            "2 devices": Streams(case, processes, apart, f"{folder}/1", tls=False),
            "1 device, TLS": Streams(case, processes, shared, f"{folder}/2", tls=True),
        }
        ways: dict[str, Callable[[int], Any]] = {"reference": InProcess(case, folder).run}
        ways |= {name: stream.run for name, stream in streams.items()}
        for round_ in range(1, repeats + 2):
            for name, run in ways.items():
                meter, own = Meter(), time.process_time()
                run(round_)
                laps.setdefault(name, []).append((*meter.lap(), time.process_time() - own))
        for stream in streams.values():
            stream.server.stop()
    bare = laps["reference"][1:]
    result = {}
    for name, column in laps.items():
        pairs = list(zip(bare, column[1:], strict=True))  # rounds side by side; the first one warms up
        wall, cpu, server = (1000 / number * statistics.median(c) for c in zip(*column[1:], strict=True))
        result[name] = {
            "seconds": wall, "cpu_seconds": cpu, "of_that_server": server,
            "speed": statistics.median(b[0] / s[0] for b, s in pairs),
            "cpu_speed": statistics.median(b[1] / s[1] for b, s in pairs),
            # with a core for each side, the busier one is all that counts
            "cores_speed": statistics.median(b[1] / max(s[2], s[1] - s[2]) for b, s in pairs),
        }  # fmt: skip
    return result


def sent_bytes(network: str, cut: int, processes: Processes) -> dict[str, float]:
    """Return bytes per sample on the wire by coding, labels and all message fields included."""
    found: dict[str, float] = {}
    for coding in ("fp32", "bf16", "fp16", "uint8"):
        with tempfile.TemporaryDirectory() as folder:
            streams = Streams(Case(network, cut, coding=coding), processes, [(0,)], folder, tls=False)
            found[coding] = streams.run(1) / (BATCH[network] * BATCHES[network])
            streams.server.stop()
    return found


def held_bytes(mode: str, clients: int, cuts: Sequence[int]) -> dict[str, Any]:
    """Return the MiB that the server holds in the middle of a round of so many clients, and of a later one of two."""
    case = Case("resnet_slim", cuts[0], mode)
    network = case.build()
    shapes = {cut: network.features_at(network.example(1), cut).shape[1:] for cut in cuts}
    labels, before = torch.zeros(BATCH[case.network], dtype=torch.int64), tensor_bytes()
    found: dict[str, Any] = {"clients": clients}
    with tempfile.TemporaryDirectory() as folder:
        server = make_server_model(
            network, case.config.of(SplitEESettings), torch.device("cpu"), ClientStore(Path(folder), "held")
        )
        for round_, number, name in ((1, clients, ""), (2, 2, "_two_later")):
            dealt = {c: cuts[c % len(cuts)] for c in range(number)}
            inbox = Inbox(OpenRound(RUN, round_, 0, dealt))
            server.open_round(round_, dealt, case.sgd)
            found[f"models{name}"] = (models := tensor_bytes() - before) / MB
            for c, cut in dealt.items():
                ticket, _ = inbox.queues[c].attach(0)
                for index in range(inbox.opened.window):
                    features = torch.zeros(len(labels), *shapes[cut])
                    inbox.queues[c].put(ticket, Batch(c, cut, index, features, labels))
            found[f"waiting{name}"] = (tensor_bytes() - before - models) / MB
            inbox.close()
            del features
            server.close_round(dict.fromkeys(dealt, 1), {})
    return found


def main() -> None:
    """Measure, save after every part, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--what", default="speed,bytes,memory")
    parser.add_argument("--networks", default="resnet_slim,resnet18")
    parser.add_argument("--cases", default="sequential, fp32;sequential, bf16;averaging, fp32")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    path = RESULTS / "split.json"
    result: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    if "memory" in options.what:
        result["memory_mib"] = {
            mode: [held_bytes(mode, clients, CUTS["resnet_slim"]) for clients in HELD]
            for mode in ("sequential", "averaging")
        }
        print(save("split", result), json.dumps(result["memory_mib"]), flush=True)
    with Processes() as processes:
        for network, cut in ((n, cut) for n in options.networks.split(",") for cut in CUTS[n]):
            name = f"{network}, cut {cut}"
            if "bytes" in options.what:
                result.setdefault("bytes_per_sample", {})[name] = sent_bytes(network, cut, processes)
                print(save("split", result), name, json.dumps(result["bytes_per_sample"][name]), flush=True)
            cases = {
                "sequential, fp32": Case(network, cut),
                "sequential, bf16": Case(network, cut, coding="bf16"),
                "averaging, fp32": Case(network, cut, "averaging"),
            }
            for way in options.cases.split(";") if "speed" in options.what else ():
                found = result.setdefault("speed", {})[f"{name}, {way}"] = speed(cases[way], processes, options.repeats)
                print(save("split", result), name, way, json.dumps(found, indent=1), flush=True)


if __name__ == "__main__":
    main()
