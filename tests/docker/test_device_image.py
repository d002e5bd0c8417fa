"""The image of a device that only infers, on a Docker engine: small, confined, and with torch's answers."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from client.__main__ import main
from common.networks import NetworkSpec
from server.commands.export import export_model
from tests.docker.engine import docker, missing, size_mb
from tests.support.exported import samples, save, stored

SPEC = NetworkSpec("resnet_slim", 3, (3, 16, 16), width=4, exits=(2, 5))
IMAGE = "earlybloom-device"
CONFINED = ["--rm", "--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--network", "none"]
LARGEST = 400  # MB
pytestmark = [pytest.mark.docker, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module", autouse=True)
def image() -> None:
    if reason := missing():
        pytest.skip(reason)
    docker("build", "--file", "docker/Dockerfile", "--target", "device", "--tag", IMAGE, ".", seconds=1000)


def test_image_is_small_and_has_neither_torch_nor_flower(record_property: Callable[[str, object], None]) -> None:
    record_property("image_mb", size_mb(IMAGE))
    assert size_mb(IMAGE) < LARGEST
    (found,) = json.loads(docker("image", "inspect", IMAGE).stdout)
    assert found["Config"]["User"] == "10001:10001"
    listed = docker("run", *CONFINED, "--entrypoint", "pip", IMAGE, "list", "--format", "freeze").stdout.lower()
    assert "onnxruntime==" in listed
    assert not [line for line in listed.splitlines() if line.startswith(("torch", "flwr", "ray", "nvidia"))]


def test_container_answers_as_torch_does(tmp_path: Path) -> None:
    model, images, out = stored(SPEC), tmp_path / "images", tmp_path / "out"
    export_model(model, tmp_path / "onnx")
    for number, pixels in enumerate(samples(SPEC, 20, seed=5)):
        (images / f"class {number % 3}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.transpose(1, 2, 0)).save(images / f"class {number % 3}" / f"{number}.png")
    out.mkdir()
    out.chmod(0o777)
    folders = [tmp_path / "onnx", images]
    for path in [tmp_path, *folders, *(each for folder in folders for each in folder.rglob("*"))]:
        path.chmod(0o755)
    mounted = ["--volume", f"{folders[0]}:/model:ro", "--volume", f"{images}:/images:ro", "--volume", f"{out}:/state"]
    words = ["infer", "--model", "/model", "--images", "/images", "--json", "/state/b.json"]
    printed = docker("run", *CONFINED, *mounted, IMAGE, *words).stdout
    assert "accuracy" in printed
    torch_words = [
        "--model",
        str(save(tmp_path, model, 2)),
        "--images",
        str(images),
        "--json",
        str(tmp_path / "a.json"),
    ]
    assert main(["infer", *torch_words]) == 0
    expected, found = (json.loads(file.read_text()) for file in (tmp_path / "a.json", out / "b.json"))
    assert [(one["file"], one["label"], one["exit"]) for one in found["images"]] == [
        (one["file"], one["label"], one["exit"]) for one in expected["images"]
    ]
    assert found["summary"]["exit_histogram"] == expected["summary"]["exit_histogram"]
