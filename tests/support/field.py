"""A server and its devices, started by the launchers under TLS, optionally with device keys; checks of run folders."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from common.storage.files import read_tensors
from common.storage.model_file import FILE, load_model
from server.__main__ import main
from tests.support.deployment import wait_until
from tests.support.machines import Machines, settings
from tests.support.namespaces import Host

JOINED, ORDERED, READY = "SuperNode ID:", "working on a train message", "then, on this machine:"
PATIENCE = 300.0  # seconds that a busy machine may take for anything


class Field:
    """A server, its devices and the runs on them, all through the launchers."""

    def __init__(
        self, folder: Path, capacities: Mapping[str, str], *, keys: bool, hosts: Mapping[str, Host] | None = None
    ) -> None:
        """`capacities`: by device name, which ends with the client's number; `hosts`: the host of each process."""
        self.machines = Machines(folder, hosts)
        self.capacities, self.keys = dict(capacities), keys
        self.address = hosts["server"].address if hosts else "127.0.0.1"
        self.certificates = folder / "certificates"
        self.make_certificates("--host", self.address, *(self.capacities if keys else ()))

    def make_certificates(self, *words: str) -> None:
        """Make the certificates of the authority and the server; device names among `words` get keys."""
        options = [w for word in words for w in (["--add-device", word] if word in self.capacities else [word])]
        assert main(["certificates", "--folder", str(self.certificates), *options]) == 0

    def close(self) -> None:
        """End all processes."""
        self.machines.close()

    def serve(self) -> None:
        """Start the server, on its earlier database if it ran before."""
        required = ["--require-node-keys"] if self.keys else []
        before = self.times_printed("server", READY)
        self.machines.start(
            "server", "server", "start", "--address", f"{self.address}:{self.machines.port}",
            "--certificates", str(self.certificates), "--state", str(self.machines.folder / "server"), *required,
        )  # fmt: skip
        wait_until(lambda: self.times_printed("server", READY) > before, PATIENCE, "the server does not start")

    def device_command(self, name: str, port: int = 0) -> list[str]:
        """Return the command of a device that reaches the server at this port."""
        folder = self.certificates / "devices" / name if self.keys else self.certificates
        return [
            "client", "start", "--superlink", f"{self.address}:{port or self.machines.port}",
            "--certificates", str(folder), "--capacity", self.capacities[name], "--client-id", name[-1],
            "--state", str(self.machines.folder / name),
        ]  # fmt: skip

    def join(self, name: str, port: int = 0, **env: str) -> None:
        """Start a device and wait until the server has accepted it."""
        before = self.times_printed(name, JOINED)
        self.machines.start(name, *self.device_command(name, port), **env)
        wait_until(lambda: self.times_printed(name, JOINED) > before, PATIENCE, f"{name} did not join")

    def submit_command(self, *words: str) -> list[str]:
        """Return the command of a run."""
        return [
            "server", "submit", "--superlink", f"{self.address}:{self.machines.port}",
            "--state", str(self.machines.folder / "server"), "--root-certificates", str(self.certificates / "ca.pem"),
            *words,
        ]  # fmt: skip

    def submit(self, name: str, *pairs: str) -> Path:
        """Submit a run and return its folder; the launcher's process has the run's name."""
        self.machines.start(name, *self.submit_command(*settings(f"run.name={name}", *pairs)))
        return self.machines.folder / "server" / "runs" / name

    def wait_completed(self, name: str) -> None:
        """Wait until a submitted run has completed."""
        process = self.machines.processes.pop(name)
        assert process.wait(timeout=PATIENCE) == 0, self.machines.log(name).read_text()

    def times_printed(self, name: str, text: str) -> int:
        """Return how often a process has printed a text."""
        log = self.machines.log(name)
        return log.read_text().count(text) if log.exists() else 0

    def wait_for_round(self, name: str, round_: int, before: int) -> None:
        """Wait until a device works on this round; `before`: its orders before the run."""
        ordered = before + round_
        wait_until(
            lambda: self.times_printed(name, ORDERED) >= ordered, PATIENCE, f"{name} got no order of round {round_}"
        )

    def flower(self, name: str) -> psutil.Process:
        """Return Flower's own process under a launcher."""
        (process,) = psutil.Process(self.machines.processes[name].pid).children()
        return process


def assert_complete(folder: Path, rounds: int) -> list[dict[str, Any]]:
    """Check a run folder: every round once, complete and usable files; return the round events."""
    events = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    counted = [event for event in events if event["event"] == "round"]
    assert [event["round"] for event in counted] == list(range(1, rounds + 1))
    assert events[0]["event"] == "start"
    assert (events[-1]["event"], events[-1]["rounds"], events[-1]["failure"]) == ("end", rounds, "")
    kept = sorted((folder / "checkpoints").iterdir())
    assert [path.name for path in kept] == [f"round-{r:06d}.safetensors" for r in range(max(1, rounds - 1), rounds + 1)]
    tensors, values = read_tensors(kept[-1])
    assert values["round"] == rounds
    if (folder / "final" / FILE).exists():  # else the devices hold the final models
        network = load_model(folder / "final" / FILE).network.state_dict()
        assert network.keys() <= tensors.keys()
        assert all(network[key].equal(tensors[key]) for key in network)
    return counted


def trained(round_: Mapping[str, Any]) -> int:
    """Return how many clients took part in a round."""
    return int(sum(round_["clients"].values()))
