"""Split inference: which samples the device answers, which the server; last as three real processes."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import grpc
import numpy as np
import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from numpy.typing import NDArray
from torch import Tensor

from client.__main__ import main
from client.app import app
from client.commands.split_infer import (
    SplitPrediction,
    choose_gate,
    classify,
    closing_lines,
    summarise,
    tau_of,
    tuned_gate,
    warm_up,
)
from client.commands.split_sweep import TAUS, Measured, at, closing_line
from client.runtimes.with_torch import TorchNetwork
from common.console.samples import Samples, Takes, from_dataset
from common.exits import ThresholdPolicy, confidence, entropy_gate
from common.flower.local_grid import LocalGrid
from common.flower.processes import PROJECT
from common.rpc.channels import connect
from common.rpc.methods import SPLIT
from common.rpc.secrets import read_token
from common.storage.model_file import load_model
from strategies.callbacks.run_folder import RunFolder
from strategies.configuration import read_config
from strategies.factory import make_strategy
from strategies.hetero_splitee.offload import Suffixes
from strategies.hetero_splitee.origin import Origin
from strategies.hetero_splitee.prior import counts_of, log_prior
from strategies.hetero_splitee.remote import Answer, NoAnswer, Remote
from strategies.hetero_splitee.statistics import statistics_of
from tests.support.served import read_line

CPU = torch.device("cpu")
IMAGES = 24
CLIENTS = {1: 0, 3: 1}  # cut -> the client with it that infers; another one has cut 3, too


class Run:
    """A finished run: its folder, its devices', and their answers without a network in between."""

    def __init__(self, root: Path) -> None:
        config = read_config({
            "run.name": "split", "run.strategy": "hetero_splitee", "run.rounds": 3, "clients.count": 3,
            "clients.per-round": 3, "clients.store": str(root / "clients"), "clients.device": "cpu",
            "server.device": "cpu", "network.name": "resnet_slim", "network.width": 4, "data.limit": 600,
            "train.batch-size": 16, "round.deadline": 60.0, "splitee.statistics": "own",
            "splitee.prior": "own",
        })  # fmt: skip
        folder = RunFolder.create(root, config)
        strategy = make_strategy(config, [folder])
        nodes = [{"client-id": 0, "cut": 1}, {"client-id": 1, "cut": 3}, {"client-id": 2, "cut": 3}]
        strategy.start(LocalGrid(app, nodes, concurrent=True))
        self.folder, self.model, self.trained = folder.folder, strategy.final_model(), strategy.server
        self.devices = [root / "clients" / "split" / f"client-{client:06d}" for client in (0, 1)]
        stored = load_model(self.folder)
        self.suffixes = Suffixes(stored.network, CPU, statistics_of(stored.others), counts_of(stored.others, 10))

    def samples(self, client: int, size: int = 1) -> list[Samples]:
        stored = load_model(self.devices[client])
        return list(from_dataset("digits", stored.classes, Takes(stored.network.input_shape), size, IMAGES))

    def both(self, client: int) -> tuple[Tensor, Tensor]:
        """Logits (IMAGES, 10) of the device and of the server, one by one."""
        stored = load_model(self.devices[client])
        with torch.no_grad():
            outs = [
                stored.network.forward_exits(stored.normalizer(torch.from_numpy(s.inputs)))
                for s in self.samples(client)
            ]
        there = [self.suffixes.logits(client, stored.cut, out.trunk) for out in outs]
        return torch.cat([out.logits[-1] for out in outs]), torch.cat(there)


class Here:
    """Replaces the network: answers with the run's own layers, or fails from some call on."""

    def __init__(self, run: Run, cut: int, fails_from: int = 1_000_000) -> None:
        self.run, self.cut, self.fails_from, self.batches = run, cut, fails_from, list[int]()

    def ask(self, features: NDArray[np.float32]) -> Answer:
        self.batches.append(len(features))
        if len(self.batches) > self.fails_from:
            raise NoAnswer("no server")
        logits = self.run.suffixes.logits(CLIENTS[self.cut], self.cut, torch.from_numpy(features)).numpy()
        return Answer(logits, 100 * len(features), 10 * len(features))


class Server:
    """`python -m server offload` in a process of its own."""

    def __init__(self, run: Run, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "server", "offload", "--model", str(run.folder), "--device", "cpu", *arguments],
            cwd=PROJECT, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.command = read_line(self.process).split()
        self.address, token = self.option("--server"), Path(self.option("--token-file"))
        self.token = token

    def option(self, name: str) -> str:
        """Return an option of the command that it prints for devices."""
        return self.command[self.command.index(name) + 1]

    def stop(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return self.process.wait(20)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def server(run: Run) -> Iterator[Server]:
    started = Server(run)
    try:
        yield started
    finally:
        assert started.stop(signal.SIGINT) == 0


def device(run: Run, client: int) -> TorchNetwork:
    return TorchNetwork.open(run.devices[client], 1, "cpu", split=True)


def remote(server: Server, stored: TorchNetwork, certificate: bytes | None = None) -> Remote:
    channel = connect(server.address, read_token(server.token), certificate)
    return Remote(channel, Origin(stored.run, stored.client, stored.cut, 0), 10, deadline=20.0)


def infer(server: Server, run: Run, file: Path, *arguments: str, token: Path | None = None) -> dict:
    assert main([
        "infer", "--mode", "split", "--server", server.address, "--token-file", str(token or server.token),
        "--model", str(run.devices[1]), "--dataset", "digits", "--limit", str(IMAGES), "--device", "cpu",
        "--deadline", "20", "--json", str(file), *arguments,
    ]) == 0  # fmt: skip
    return json.loads(file.read_text())


def test_every_device_stores_its_part_with_its_tuned_gate(run: Run) -> None:
    for client, cut in enumerate((1, 3)):
        stored = device(run, client)
        assert (stored.cut, stored.run, stored.network.exit_positions) == (cut, "split", (cut,))
        assert (stored.policy.measure, stored.policy.num_exits) == ("entropy", 2)
        assert 0.0 <= tau_of(choose_gate(stored)) <= 1.0
    whole = load_model(run.folder)
    assert (whole.cut, whole.network.exit_positions) == (0, (5,))
    assert all(torch.equal(value, run.model[key]) for key, value in whole.network.state_dict().items())


def test_finished_run_answers_as_its_own_evaluation(run: Run, server: Server) -> None:
    running, key = run.trained.statistics(), "units.3.bn1.running_mean"
    assert not torch.equal(running.cuts[1][key], running.cuts[3][key])
    for cut, shape in run.suffixes.shapes.items():  # no client has 2 and 4
        features = torch.randn(8, *shape, generator=torch.Generator().manual_seed(cut))
        expected = run.trained.logits(0, cut, features)
        assert torch.equal(run.suffixes.logits(0, cut, features), expected)
    for client in (0, 1):
        stored = device(run, client)
        features = torch.randn(8, *run.suffixes.shapes[stored.cut], generator=torch.Generator().manual_seed(9))
        there = remote(server, stored).ask(features.numpy()).logits
        assert stored.client == client
        own = run.trained.logits(client, stored.cut, features)
        assert torch.equal(torch.from_numpy(there), own)
        # another client of the same cut, which has none of its own yet, gets the cut's statistics and no prior
        stored.client = 99
        there = remote(server, stored).ask(features.numpy()).logits
        assert torch.equal(torch.from_numpy(there), run.trained.logits(99, stored.cut, features))
        prior = log_prior(run.trained.labels().clients[client])
        assert torch.equal(torch.from_numpy(there) + prior, own) == (client == 0)  # the only one with its cut


def test_tau_is_one_minus_the_threshold() -> None:
    stored: Any = SimpleNamespace(policy=ThresholdPolicy((0.35,), "entropy"))
    assert tau_of(choose_gate(stored)) == 0.65
    assert tau_of(choose_gate(stored, 0.2)) == 0.2
    assert tau_of(choose_gate(cast(Any, SimpleNamespace(policy=ThresholdPolicy(()))))) == 0.0  # not tuned: all go up
    for tau in TAUS:
        assert tau_of(entropy_gate(tau)) == pytest.approx(tau)


@pytest.mark.parametrize("size", [1, 7])
def test_only_unsure_samples_go_up_and_cost_bytes(run: Run, size: int) -> None:
    stored, (here, there) = device(run, 1), run.both(1)
    entropy = 1 - confidence(here, "entropy")
    middle = entropy.sort().values[IMAGES // 4 : 3 * IMAGES // 4]
    widest = int(middle.diff().argmax())  # a last bit of arithmetic must not decide which samples stay
    tau = float(middle[widest : widest + 2].mean())
    asked = Here(run, 3)
    found = list(classify(stored, run.samples(1, size), entropy_gate(tau), asked))  # type: ignore[arg-type]
    stays = (entropy <= tau).tolist()
    assert 0 < sum(stays) < IMAGES
    assert [p.answered == "device" for p in found] == stays
    expected = torch.where(torch.tensor(stays)[:, None], here, there).argmax(-1)
    assert [p.label for p in found] == [str(label) for label in expected.tolist()]
    assert [(p.sent, p.received) for p in found] == [(0, 0) if s else (pytest.approx(100), 10) for s in stays]
    assert sum(asked.batches) == IMAGES - sum(stays)
    assert all(p.ms > 0 and not p.problem for p in found)
    assert [p.entropy for p in found] == pytest.approx(entropy.tolist(), abs=1e-5)


def test_at_tau_1_no_sample_goes_up_and_at_0_all_do(run: Run) -> None:
    stored, (here, there) = device(run, 0), run.both(0)
    asked = Here(run, 1)
    for tau, logits, calls in ((1.0, here, 0), (0.0, there, IMAGES)):
        warm_up(stored, entropy_gate(tau), asked)  # type: ignore[arg-type]
        asked.batches = asked.batches[1:]
        found = list(classify(stored, run.samples(0), entropy_gate(tau), asked))  # type: ignore[arg-type]
        assert [int(p.label) for p in found] == logits.argmax(-1).tolist()
        assert len(asked.batches) == calls


def test_without_an_answer_the_device_answers_and_reports_it(run: Run) -> None:
    stored, (here, there) = device(run, 1), run.both(1)
    asked = Here(run, 3, fails_from=10)
    found = list(classify(stored, run.samples(1), entropy_gate(0.0), asked))  # type: ignore[arg-type]
    expected = torch.cat([there[:10], here[10:]]).argmax(-1)
    assert [int(p.label) for p in found] == expected.tolist()
    assert [p.answered for p in found] == ["server"] * 10 + ["device"] * (IMAGES - 10)
    assert [p.problem for p in found] == [""] * 10 + ["no server"] * (IMAGES - 10)
    summary = summarise(found, 0.0, 0)
    assert (summary.on_device, summary.in_place) == (IMAGES - 10, IMAGES - 10)
    assert summary.problems == {"no server": IMAGES - 10}
    assert summary.mean_ms_device is None
    lines = closing_lines(summary, "there:1", "images")
    assert f"{IMAGES - 10} of them answered by the device instead of the server: no server" in lines


def test_summary_matches_hand_computed_values() -> None:
    rows = [
        SplitPrediction("a", "x", "x", "device", 0.1, 1.0, 0.0, 0.0),
        SplitPrediction("b", "x", "y", "server", 0.9, 5.0, 300.0, 30.0),
        SplitPrediction("c", "x", None, "server", 0.9, 6.0, 300.0, 30.0),
        SplitPrediction("d", "x", "x", "device", 0.8, 4.0, 0.0, 0.0, "lost"),
    ]
    s = summarise(rows, 0.25, 2)
    assert (s.images, s.skipped, s.tau, s.on_device, s.in_place, s.share_on_device) == (4, 2, 0.25, 2, 1, 0.5)
    assert (s.mean_ms, s.mean_ms_device, s.mean_ms_server) == (4.0, 1.0, 5.5)
    assert (s.mean_sent, s.mean_received, s.labelled, s.accuracy) == (150.0, 15.0, 3, 2 / 3)
    assert "accuracy 66.7 % of 3 labelled texts" in closing_lines(s, "h:1", "texts")
    assert closing_lines(s, "h:1", "images")[0] == "4 images, tau 0.25: 2 answered on the device (50.0 %), 2 by h:1"


def test_sweep_matches_hand_computed_values() -> None:
    logits = np.array([[0.0, 0.0], [3.0, 0.0], [50.0, 0.0]], np.float32)  # entropies 1, 0.275, 0
    numbers = {"ms_here": [1, 2, 3], "ms_there": [10, 20, 30], "sent": [6, 6, 12], "received": [1, 1, 1]}
    here, there = np.array([False, False, True]), np.array([True, True, False])
    measured = Measured(logits, here, there, **{k: np.array(v, np.float64) for k, v in numbers.items()})
    point = at(measured, 0.0)
    assert (point.accuracy, point.share_on_device, point.mean_ms, point.mean_sent) == (2 / 3, 0.0, 22.0, 8.0)
    point = at(measured, 0.25)
    assert (point.accuracy, point.share_on_device) == (1.0, 1 / 3)
    assert (point.mean_ms, point.mean_sent, point.mean_received) == (12.0, 4.0, 2 / 3)
    assert at(measured, 0.3).share_on_device == 2 / 3
    point = at(measured, 1.0)
    assert (point.accuracy, point.share_on_device, point.mean_ms, point.mean_sent) == (1 / 3, 1.0, 2.0, 0.0)


def test_three_processes_answer_as_one_does(run: Run, server: Server, tmp_path: Path) -> None:
    command = [sys.executable, *server.command[1:]]
    command[command.index("--images") :] = ["--dataset", "digits", "--limit", str(IMAGES), "--tau", "0.0"]
    assert Path(server.option("--model")) == run.devices[0]
    file = tmp_path / "answers.json"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--deadline", "20", "--json", str(file)],
        cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"0 answered on the device (0.0 %), {IMAGES} by {server.address}" in done.stdout
    images = json.loads(file.read_text())["images"]
    assert [int(image["label"]) for image in images] == run.both(0)[1].argmax(-1).tolist()
    assert {image["answered"] for image in images} == {"server"}


def test_logits_over_a_socket_are_the_same_bits(run: Run, server: Server) -> None:
    stored = device(run, 0)
    features = stored.half(run.samples(0, IMAGES)[0].inputs).features
    expected = run.suffixes.logits(0, 1, torch.from_numpy(features))
    assert torch.equal(torch.from_numpy(remote(server, stored).ask(features).logits), expected)


def test_reflection_and_health_need_the_token(run: Run, server: Server) -> None:
    with connect(server.address, read_token(server.token)) as channel:
        known = ProtoReflectionDescriptorDatabase(channel)
        assert {SPLIT, "grpc.health.v1.Health"} <= set(known.get_services())
        assert "OffloadReply" in [message.name for message in known.FindFileContainingSymbol(SPLIT).message_type]
        health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=SPLIT), timeout=20)
        assert health.status == health_pb2.HealthCheckResponse.SERVING
    with connect(server.address, "another") as channel, pytest.raises(grpc.RpcError, match="UNAUTHENTICATED"):
        ProtoReflectionDescriptorDatabase(channel).get_services()


def test_tuned_gate_decides_and_json_holds_all_values(
    run: Run, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = infer(server, run, tmp_path / "a.json", "--tau", "0.5", "--coding", "uint8", "--batch", "8")
    capsys.readouterr()
    rows, summary = found["images"], found["summary"]
    assert (found["cut"], found["coding"], summary["tau"], summary["images"]) == (3, "uint8", 0.5, IMAGES)
    assert [row["answered"] == "device" for row in rows] == [row["entropy"] <= 0.5 for row in rows]
    assert summary["on_device"] == sum(row["answered"] == "device" for row in rows)
    assert summary["mean_sent"] == pytest.approx(sum(row["sent"] for row in rows) / IMAGES)
    tuned = infer(server, run, tmp_path / "b.json")["summary"]
    assert tuned["tau"] == tau_of(device(run, 1).policy)


def test_a_sweep_over_the_network(run: Run, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = infer(server, run, tmp_path / "sweep.json", "--sweep")
    points, (here, there) = found["sweep"], run.both(1)
    truths = torch.tensor([int(t) for s in run.samples(1) for t in s.truths if t is not None])
    assert [point["tau"] for point in points] == list(TAUS)
    shares = [point["share_on_device"] for point in points]
    assert (shares[0], shares[-1]) == (0.0, 1.0)
    assert shares == sorted(shares)
    assert len(set(shares)) > 2
    assert points[0]["accuracy"] == pytest.approx((there.argmax(-1) == truths).double().mean().item())
    assert points[-1]["accuracy"] == pytest.approx((here.argmax(-1) == truths).double().mean().item())
    bytes_up, ms = [[point[key] for point in points] for key in ("mean_sent", "mean_ms")]
    assert bytes_up == sorted(bytes_up, reverse=True)
    assert ms == sorted(ms, reverse=True)
    assert bytes_up[-1] == 0 < ms[-1]
    tuned = tau_of(device(run, 1).policy)
    assert found["tuned_tau"] == tuned
    assert f"tau 0: all to the server, 1: all on the device; this device tuned {tuned:g}" in capsys.readouterr().out


def test_gate_of_a_device_that_tuned_none_is_not_called_tuned(run: Run) -> None:
    untuned = replace(load_model(run.devices[0]), policy=ThresholdPolicy((0.5, 0.5)))
    assert tuned_gate(TorchNetwork(untuned, CPU)) is None
    assert tau_of(choose_gate(TorchNetwork(untuned, CPU))) == 0.0
    assert closing_line("24 images", None) == "24 images; tau 0: all to the server, 1: all on the device"


def test_a_wrong_token_is_refused_and_reported(
    run: Run, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    token = tmp_path / "token"
    token.touch(0o600)
    token.write_text("another")
    found = infer(server, run, tmp_path / "a.json", "--tau", "0", token=token)
    printed = capsys.readouterr()
    assert "UNAUTHENTICATED" in printed.err
    assert f"{IMAGES} of them answered by the device instead of the server" in printed.out
    assert found["summary"]["in_place"] == IMAGES
    assert [int(row["label"]) for row in found["images"]] == run.both(1)[0].argmax(-1).tolist()
    arguments = ["infer", "--mode", "split", "--server", server.address, "--token-file", str(token), "--sweep"]
    assert main([*arguments, "--model", str(run.devices[1]), "--dataset", "digits"]) == 2
    assert "--sweep needs an answer to every image" in capsys.readouterr().err


def test_another_runs_device_is_refused(run: Run, server: Server) -> None:
    stored = device(run, 1)
    with pytest.raises(NoAnswer, match="'other' with cut 3 is not served here"):
        stored.run = "other"
        remote(server, stored).ask(np.zeros((1, *run.suffixes.shapes[3]), np.float32))


def test_with_tls_until_the_server_is_killed(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "tls"
    server = Server(run, "--tls", "--certificate-dir", str(folder), "--token-file", str(folder / "token"))
    try:
        certificate = Path(server.option("--certificate"))
        assert sorted(p.name for p in folder.iterdir()) == ["certificate.pem", "key.pem", "token"]
        stored, gate, (here, there) = device(run, 1), entropy_gate(0.0), run.both(1)
        asked = remote(server, stored, certificate.read_bytes())
        with pytest.raises(NoAnswer, match="cannot be reached"):  # the server accepts no plain text
            remote(server, stored).ask(np.zeros((1, *run.suffixes.shapes[3]), np.float32))

        def samples() -> Iterator[Samples]:
            for number, sample in enumerate(run.samples(1)):
                if number == 10:
                    server.stop(signal.SIGKILL)
                yield sample

        found = list(classify(stored, samples(), gate, asked))
    finally:
        server.process.kill()
        server.process.wait()
    assert [p.answered for p in found] == ["server"] * 10 + ["device"] * (IMAGES - 10)
    assert [int(p.label) for p in found] == torch.cat([there[:10], here[10:]]).argmax(-1).tolist()
    assert all("cannot be reached" in p.problem for p in found[10:])
    assert sum(p.ms for p in found[11:]) < 1000  # after the first failure it does not wait for every image


def test_user_errors_end_with_2_and_one_line(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    token, part = str(run.folder / "token"), str(run.devices[0])
    (run.folder / "token").touch(0o600)
    (run.folder / "token").write_text("a")
    split = ["--mode", "split", "--server", "127.0.0.1:1", "--token-file", token]
    (tmp_path / "public").write_text("a")
    for arguments, message in (
        ([*split, "--model", str(run.folder)], "not a device's part"),
        ([*split, "--model", part, "--tau", "1.5"], "tau 1.5"),
        ([*split, "--model", part, "--deadline", "0"], "--deadline 0.0"),
        ([*split, "--model", part, "--threshold", "0.5"], "--threshold is for --mode local"),
        ([*split, "--model", part, "--threshold", "0"], "--threshold is for --mode local"),
        ([*split, "--model", part, "--sweep", "--tau", "0"], "--tau 0.0 with --sweep"),
        (["--model", part, "--tau", "0.5"], "--tau is for --mode split"),
        (["--model", part, "--tau", "0"], "--tau is for --mode split"),
        (["--model", str(run.folder)], "is the server's half"),
        (["--mode", "split", "--model", part], "needs --server"),
        (
            ["--mode", "split", "--model", part, "--server", "x:1", "--token-file", str(tmp_path / "public")],
            "chmod 600",
        ),
        (["--mode", "split", "--model", part, "--server", "10.1.2.3:1", "--token-file", token], "needs? TLS"),
        ([*split, "--model", part, "--certificate", token], "not a certificate"),
    ):
        assert main(["infer", *arguments, "--dataset", "digits", "--limit", "2"]) == 2
        error = capsys.readouterr().err
        assert message.replace("needs? TLS", "need TLS") in error
        assert error.count("\n") == 1
