"""A real SuperNode whose own folder of images changes between two runs."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from common.storage.files import read_tensors
from common.storage.run_files import read_events
from tests.support.deployment import Deployment
from tests.support.digit_folders import write_images

SETTINGS = {
    "run.strategy": "eefl", "run.rounds": 1, "clients.count": 1, "clients.per-round": 1, "data.name": "devices",
    "data.classes": "zero,one,two", "data.channels": 1, "data.image-size": 8, "data.validation": 0.0,
    "round.min-nodes": 1, "network.name": "lenet",
}  # fmt: skip
pytestmark = [pytest.mark.deployment, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def deployment(tmp_path: Path) -> Iterator[Deployment]:
    write_images(tmp_path / "images", ["zero", "one", "two"], 0)
    deployment = Deployment(tmp_path / "deployment")
    try:
        deployment.node("node", f'client-id=0 depth=2 data="{tmp_path / "images"}"')
        yield deployment
    finally:
        deployment.close()


def test_second_run_trains_on_the_changed_folder(deployment: Deployment, tmp_path: Path) -> None:
    def run(name: str) -> tuple[str, dict[str, float]]:
        status, details = deployment.wait(deployment.run({**SETTINGS, "run.name": name}), 200)
        events = read_events(deployment.folder / "runs" / name / "metrics.jsonl")
        return status + details, next((e["client_metrics"] for e in events if e["event"] == "round"), {})

    def samples(name: str) -> list[int]:
        checkpoint = deployment.folder / "runs" / name / "checkpoints" / "round-000001.safetensors"
        return [report["num_examples"] for report in read_tensors(checkpoint)[1]["reports"]]

    first = run("first")
    assert samples("first") == [30]
    for number in range(5):
        (tmp_path / "images" / "two" / f"{number}.png").unlink()
    second = run("second")
    assert samples("second") == [25]
    assert first[1]["loss"] != second[1]["loss"]
    log = (deployment.folder / "node.log").read_text()
    assert log.count("ready, app") == 1, "both runs were served by one worker"

    (tmp_path / "images" / "two").rename(tmp_path / "images" / "cat")
    status, _ = run("third")
    assert status.startswith("finished:failed"), "a class that the run does not have"
