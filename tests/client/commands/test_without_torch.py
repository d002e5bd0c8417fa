"""Exported networks on a device without torch and Flower: real processes in which neither can be imported."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from client.__main__ import main
from common.networks import Inference, NetworkSpec
from common.rpc.channels import connect
from common.rpc.secrets import read_token
from server.commands.export import export_model, export_student
from strategies.distree.exits.policies import FeatureDifference, OwnHead
from strategies.distree.serving.aggregator import Aggregator
from tests.strategies.distree.devices import EXITS, GATE, PIXELS, Tiny, wait_ready
from tests.support.exported import samples, save, stored
from tests.support.served import read_line
from tests.support.without_torch import COMMAND

SPEC = NetworkSpec("lenet", 3, (1, 12, 12), exits=(1, 3))
TEXTS = NetworkSpec("transformer4", 3, (8,), vocabulary=50, width=8, exits=(2, 5))
WORDS = ("one two three", "Four, five. Six!", "seven eight nine ten eleven twelve thirteen")


def run(*words: str, code: int = 0, **environment: str) -> "subprocess.CompletedProcess[str]":
    done = subprocess.run(
        [*COMMAND, *words], capture_output=True, text=True, timeout=120, check=False, env={**os.environ, **environment}
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


def answers(file: Path) -> dict[str, Any]:
    """Return what a command stored, without what differs from call to call."""
    content = json.loads(file.read_text())
    for one in (content["summary"], *content["images"]):
        for key in [key for key in one if "ms" in key]:
            del one[key]
    for image in content["images"]:
        for key in ("confidence", "entropy"):
            if key in image:
                image[key] = pytest.approx(image[key], abs=1e-5)
    del content["model"]
    return content


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images in folders named after their class, and one that cannot be read."""
    root = tmp_path_factory.mktemp("images")
    for number, pixels in enumerate(samples(SPEC, 12, seed=4)):
        (root / f"class {number % 3}").mkdir(exist_ok=True)
        Image.fromarray(pixels[0]).save(root / f"class {number % 3}" / f"{number}.png")
    (root / "broken.png").write_text("no image")
    return root


@pytest.mark.parametrize("batch", ["1", "5"])
def test_images_get_the_same_answers_in_the_same_form(
    images: Path, tmp_path: Path, batch: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = stored(SPEC)
    export_model(model, tmp_path / "onnx")
    common = ["--images", str(images), "--batch", batch]
    assert main(["infer", "--model", str(save(tmp_path, model, 2)), *common, "--json", str(tmp_path / "a.json")]) == 0
    printed = capsys.readouterr().out
    done = run("infer", "--model", str(tmp_path / "onnx"), *common, "--json", str(tmp_path / "b.json"))
    expected, found = answers(tmp_path / "a.json"), answers(tmp_path / "b.json")
    assert expected == found
    assert {image["exit"] for image in found["images"]} == {1, 2}
    assert (found["summary"]["images"], list(found["skipped"])) == (12, ["broken.png"])
    assert done.stdout.splitlines()[-2:] == printed.splitlines()[-2:]
    assert "skipped: " in done.stderr


def test_texts_get_the_same_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, texts = stored(TEXTS), tmp_path / "texts"
    export_model(model, tmp_path / "onnx")
    for number, text in enumerate(WORDS):
        (texts / f"class {number}").mkdir(parents=True)
        (texts / f"class {number}" / "a.txt").write_text(text)
    (texts / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    (texts / "empty.txt").write_text(" \n")
    (texts / "image.png").write_text("no text")
    common = ["--texts", str(texts)]
    assert main(["infer", "--model", str(save(tmp_path, model, 2)), *common, "--json", str(tmp_path / "a.json")]) == 0
    run("infer", "--runtime", "onnx", "--model", str(tmp_path / "onnx"), *common, "--json", str(tmp_path / "b.json"))
    expected, found = answers(tmp_path / "a.json"), answers(tmp_path / "b.json")
    assert expected == found
    assert (found["summary"]["images"], found["summary"]["labelled"]) == (3, 3)
    assert set(found["skipped"]) == {"latin.txt", "empty.txt"}
    assert "left out: 1 file without a text's suffix (1 .png)" in capsys.readouterr().err
    assert main(["infer", "--model", str(tmp_path), "--images", str(texts)]) == 2
    assert "the model of --model classifies texts, give --texts FOLDER" in capsys.readouterr().err


def test_a_devices_half_answers_alone_when_no_server_does(images: Path, tmp_path: Path) -> None:
    model = stored(SPEC, cut=2)
    export_model(model, tmp_path / "onnx")
    token = tmp_path / "token"
    token.touch(0o600)
    token.write_text("a")
    split = ["--mode", "split", "--server", "127.0.0.1:1", "--token-file", str(token), "--deadline", "0.2"]
    common = ["--images", str(images), *split, "--tau", "0.999"]
    assert main(["infer", "--model", str(save(tmp_path, model, 0)), *common, "--json", str(tmp_path / "a.json")]) == 0
    run("infer", "--model", str(tmp_path / "onnx"), *common, "--json", str(tmp_path / "b.json"))
    assert answers(tmp_path / "a.json") == answers(tmp_path / "b.json")


def test_mistakes_are_one_line(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path, stored(SPEC), 2)
    for words, message in (
        (["--model", str(tmp_path)], "this needs the package 'torch', which is not installed"),
        (["--model", str(tmp_path), "--runtime", "onnx"], "no exported model in"),
    ):
        error = run("infer", "--images", str(images), *words, code=2).stderr
        assert message in error
        assert error.count("\n") == 1
    (tmp_path / "model.json").write_text("{}")
    for words, message in (
        (["--device", "cuda"], "--device cuda: ONNX computes on the processor here"),
        (["--threads", "0"], "--threads 0: give 1 or more"),
        ([], "model.json is damaged"),
    ):
        assert main(["infer", "--images", str(images), "--model", str(tmp_path), *words]) == 2
        assert message in capsys.readouterr().err


def test_nothing_is_reported_and_nothing_kept_in_the_home(images: Path, tmp_path: Path) -> None:
    """onnxruntime keeps an identifier of the device there, and what it will send."""
    export_model(stored(SPEC), tmp_path / "onnx")
    home = tmp_path / "home"
    home.mkdir()
    private = {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache"), "CI": "", "ORT_DISABLE_TELEMETRY": "0"}
    run("infer", "--model", str(tmp_path / "onnx"), "--images", str(images), **private)
    assert list(home.rglob("*")) == []


class Device:
    """`python -m client serve-student` of an exported student, without torch."""

    def __init__(self, folder: Path) -> None:
        words = [*COMMAND, "serve-student", "--model", str(folder), "--token-file", str(folder.parent / "token")]
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=dict(os.environ))
        self.address = read_line(self.process).split()[-1]
        read_line(self.process)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return Tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def device(tiny: Tiny) -> Iterator[Device]:
    export_student(tiny.student(2), tiny.folder / "onnx")
    started = Device(tiny.folder / "onnx")
    try:
        yield started
    finally:
        assert started.stop() == 0


def test_a_student_serves_the_same_features(tiny: Tiny, device: Device) -> None:
    reference = torch.stack(tiny.student(2).network(tiny.student(2).normalizer(PIXELS))).detach()
    ratio = FeatureDifference((1.0,) * (EXITS - 1)).scores(reference)[1:-1]
    # between two samples: at one rounding would decide
    some = FeatureDifference((1.0, *(float(row.sort().values[2:4].mean()) for row in ratio)))
    sure = OwnHead((float("inf"),) * (EXITS - 1)).scores(reference, tiny.student(2).classify)[:-1].detach()
    own = OwnHead(tuple(float(row.sort().values[3:5].mean()) for row in sure))
    odds = GATE.scores(reference, tiny.student(2).classify)[:-1].detach()
    gate = replace(GATE, thresholds=tuple(float(row.sort().values[3:5].mean()) for row in odds))
    last = FeatureDifference((float("inf"),) * (EXITS - 1))
    mean = Inference(tiny.whole.means[1].expand(len(PIXELS), -1), torch.full((len(PIXELS),), EXITS - 1))
    with (
        connect(device.address, read_token(tiny.folder / "token")) as channel,
        Aggregator(tiny.whole, {2: channel}, 20.0) as aggregator,
    ):
        wait_ready(aggregator, 2)
        for policy in (some, own, gate, last):
            answer, here = aggregator.infer(PIXELS, {2: policy}), tiny.here(2, policy)
            assert answer.exits[2].tolist() == here.exits.tolist()
            expected = tiny.combined({1: mean, 2: here})
            torch.testing.assert_close(answer.logits, expected, atol=1e-4, rtol=0)
    for policy in (some, own, gate):
        assert len(set(tiny.here(2, policy).exits.tolist())) > 1
