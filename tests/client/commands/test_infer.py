"""Inference on a folder: real digits as PNG files, a small network trained briefly so that exits differ."""

import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from client.__main__ import main
from client.commands.infer import Prediction, choose_policy, classify, closing_lines, summarise
from client.runtimes.with_torch import TorchNetwork, exit_macs
from common.console.samples import find_images, from_folder
from common.data.digits import read_digits
from common.data.images import Normalizer
from common.errors import UserError
from common.exits import ThresholdPolicy
from common.networks import NetworkSpec, build, cost_table
from common.storage.model_file import FILE, ModelInfo, StoredModel, load_model, save_model

SPEC = NetworkSpec("resnet_slim", 10, (1, 8, 8))
CPU = torch.device("cpu")
MEAN, STD = (0.3,), (0.35,)


def predict(stored: StoredModel, folder: Path, batch: int = 1) -> list[Prediction]:
    samples = from_folder(folder, find_images(folder), stored.classes, stored.network.input_shape, batch)
    network = TorchNetwork(stored, CPU)
    network.macs = (10, 20, 30, 40)
    return list(classify(network, samples, network.policy))


@pytest.fixture(scope="module")
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    split = read_digits().train
    return torch.from_numpy(np.stack(split.samples)[:, None]), torch.from_numpy(split.labels)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory, digits: tuple[torch.Tensor, torch.Tensor]) -> Path:
    """A run's folder with a finished model whose exits are unsure enough to differ."""
    network = build(SPEC, seed=1).train()
    x, y = Normalizer(MEAN, STD)(digits[0][:1500]), digits[1][:1500]
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    for rows in torch.randperm(1500, generator=torch.Generator().manual_seed(0)).split(50):
        optimizer.zero_grad()
        torch.stack([F.cross_entropy(logits, y[rows]) for logits in network(x[rows])]).sum().backward()
        optimizer.step()
    folder = tmp_path_factory.mktemp("run")
    policy = ThresholdPolicy((0.14, 0.3, 0.7))
    info = ModelInfo(SPEC.to_json(), 4, tuple("0123456789"), MEAN, STD, policy.to_json())
    save_model(folder / "final" / FILE, network.state_dict(), info)
    return folder


@pytest.fixture
def images(tmp_path: Path, digits: tuple[torch.Tensor, torch.Tensor]) -> Path:
    """Forty unseen digits in folders named after their class."""
    root = tmp_path / "images"
    for number in range(1500, 1540):
        folder = root / str(int(digits[1][number]))
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(digits[0][number, 0].numpy()).save(folder / f"{number}.png")
    return root


def test_predictions_are_the_whole_networks_at_the_policys_exit(
    run_folder: Path, images: Path, digits: tuple[torch.Tensor, torch.Tensor]
) -> None:
    stored = load_model(run_folder)
    predictions = predict(stored, images)
    numbers = [int(Path(p.file).stem) for p in predictions]
    with torch.no_grad():
        logits = torch.stack(stored.network(stored.normalizer(digits[0][numbers])))
    exits = stored.policy.exits(logits)
    chosen = logits[exits, torch.arange(40)]
    assert [p.exit for p in predictions] == (exits + 1).tolist()
    assert len(set(exits.tolist())) > 1
    assert [p.label for p in predictions] == [str(c) for c in chosen.argmax(-1).tolist()]
    assert [p.truth for p in predictions] == [str(int(digits[1][n])) for n in numbers]
    assert [p.confidence for p in predictions] == pytest.approx(chosen.softmax(-1).amax(-1).tolist(), abs=1e-5)


@pytest.mark.parametrize("batch", [1, 7])
def test_units_after_the_exit_never_run_and_macs_follow(run_folder: Path, images: Path, batch: int) -> None:
    stored = load_model(run_folder)
    seen: Counter[int] = Counter()  # unit -> computed samples
    for index, unit in stored.network.units.items():
        unit.register_forward_hook(lambda _, inputs, __, index=int(index): seen.update({index: len(inputs[0])}))
    predictions = predict(stored, images, batch)
    positions = stored.network.exit_positions
    expected = Counter(unit for p in predictions for unit in range(positions[p.exit - 1]))
    assert seen == expected
    assert [p.macs for p in predictions] == [10 * p.exit for p in predictions]
    assert len({p.macs for p in predictions}) > 1


def test_batches_give_the_same_predictions(run_folder: Path, images: Path) -> None:
    stored = load_model(run_folder)
    one, many = ([(p.file, p.label, p.exit) for p in predict(stored, images, size)] for size in (1, 16))
    assert one == many


def test_exit_macs_are_those_of_the_cost_table(run_folder: Path) -> None:
    stored = load_model(run_folder)
    costs = cost_table(stored.network)
    assert exit_macs(stored) == tuple(costs.macs(e) for e in range(4))
    assert list(exit_macs(stored)) == sorted(set(exit_macs(stored)))


def test_choose_policy_prefers_the_options(run_folder: Path) -> None:
    stored = TorchNetwork(load_model(run_folder), CPU)
    assert choose_policy(stored).thresholds == (0.14, 0.3, 0.7)
    assert choose_policy(stored, accuracy_first=True).thresholds == (math.inf,) * 3
    assert choose_policy(stored, threshold=0.25).thresholds == (0.25,) * 3
    with pytest.raises(UserError, match="--threshold nan: give a confidence"):
        choose_policy(stored, threshold=math.nan)


def test_json_holds_the_tables_values(
    run_folder: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "out.json"
    assert main(["infer", "--model", str(run_folder), "--images", str(images), "--json", str(file)]) == 0
    content = json.loads(file.read_text())
    rows, summary = content["images"], content["summary"]
    assert content["policy"] == {"measure": "softmax", "thresholds": [0.14, 0.3, 0.7]}
    assert len(rows) == summary["images"] == summary["labelled"] == 40
    assert set(rows[0]) == {"file", "label", "truth", "exit", "confidence", "ms", "macs"}
    assert all(row["ms"] > 0 for row in rows)
    assert summary["exit_histogram"] == [sum(row["exit"] == e for row in rows) for e in (1, 2, 3, 4)]
    assert summary["mean_macs"] == pytest.approx(sum(row["macs"] for row in rows) / 40)
    assert summary["share_of_full_macs"] == pytest.approx(summary["mean_macs"] / summary["full_macs"])
    assert summary["accuracy"] == sum(row["label"] == row["truth"] for row in rows) / 40
    printed = capsys.readouterr().out
    assert rows[0]["file"] in printed
    assert f"accuracy {100 * summary['accuracy']:.1f} % of 40 labelled images" in printed


def test_corrupt_files_are_skipped_and_counted(
    run_folder: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = next(images.rglob("*.png")).read_bytes()
    (images / "cut.png").write_bytes(whole[: len(whole) // 2])
    (images / "text [bold].jpg").write_text("no image")
    file = tmp_path / "out.json"
    assert main(["infer", "--model", str(run_folder), "--images", str(images), "--json", str(file)]) == 0
    captured, content = capsys.readouterr(), json.loads(file.read_text())
    assert set(content["skipped"]) == {"cut.png", "text [bold].jpg"}
    assert (content["summary"]["images"], content["summary"]["skipped"]) == (40, 2)
    assert captured.err.count("skipped:") == 2
    assert "2 unreadable files skipped" in captured.out


def test_images_are_resized_and_a_flat_folder_has_no_accuracy(run_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "colour"
    (folder / "deep" / "deeper").mkdir(parents=True)
    Image.new("RGBA", (31, 17), (200, 10, 10, 90)).save(folder / "deep" / "deeper" / "[red].webp")
    Image.new("RGB", (8, 8)).save(folder / "black.bmp")
    stored = load_model(run_folder)
    predictions = predict(stored, folder)
    assert [p.file for p in predictions] == ["black.bmp", "deep/deeper/[red].webp"]
    summary = summarise(predictions, exit_macs(stored), skipped=0)
    assert (summary.labelled, summary.accuracy) == (0, None)
    assert len(closing_lines(summary, "images")) == 1


def test_a_prefix_uses_the_whole_networks_policy(run_folder: Path, images: Path, tmp_path: Path) -> None:
    whole = load_model(run_folder)
    info = ModelInfo(SPEC.to_json(), 2, whole.classes, MEAN, STD, whole.policy.to_json())
    save_model(tmp_path / FILE, whole.network.state_dict(), info)
    small = predict(load_model(tmp_path), images)
    assert [p.exit for p in small] == [min(p.exit, 2) for p in predict(whole, images)]
    assert {p.exit for p in small} == {1, 2}


def test_accuracy_first_uses_the_last_exit(run_folder: Path, images: Path, tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    arguments = ["infer", "--model", str(run_folder / "final" / FILE), "--images", str(images), "--json", str(file)]
    assert main([*arguments, "--accuracy-first"]) == 0
    summary = json.loads(file.read_text())["summary"]
    assert summary["exit_histogram"] == [0, 0, 0, 40]
    assert summary["share_of_full_macs"] == 1.0
    assert main([*arguments, "--threshold", "0"]) == 0
    assert json.loads(file.read_text())["summary"]["exit_histogram"] == [40, 0, 0, 0]


def test_a_file_that_cannot_be_written_is_refused_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["infer", "--model", str(tmp_path / "absent"), "--dataset", "digits", "--json", str(tmp_path)])
    assert f"argument --json: {tmp_path} is a folder: name a file in it" in capsys.readouterr().err


def test_user_errors_end_with_2_and_one_line(
    run_folder: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_text("no image")
    (tmp_path / "damaged.safetensors").write_bytes(b"damaged")
    model, folder = str(run_folder), str(images)
    for arguments, message in (
        (["--model", str(tmp_path / "absent"), "--images", folder], "no model in"),
        (["--model", str(tmp_path / "damaged.safetensors"), "--images", folder], "cannot be read"),
        (["--model", model, "--images", str(tmp_path / "empty")], "holds no images"),
        (["--model", model, "--images", str(tmp_path / "absent")], "is not a folder"),
        (["--model", model, "--images", folder, "--batch", "0"], "give 1 or more"),
        (["--model", model, "--images", folder, "--column", "a"], "--column a names the texts of a --dataset: leave"),
        (["--model", model, "--dataset", "digits", "--column", "a"], "--column a names the texts"),
    ):
        assert main(["infer", *arguments]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert main(["infer", "--model", model, "--images", str(tmp_path / "bad")]) == 2
    assert "none of the 1 files" in capsys.readouterr().err
