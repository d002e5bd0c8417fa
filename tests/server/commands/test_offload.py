"""What `python -m server offload` refuses before it listens.

Its answers to devices are tested in tests/client/commands/test_split_infer.py.
"""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from common.networks import NetworkSpec, build, without_early_exits
from common.storage.model_file import FILE, ModelInfo, save_model
from server.__main__ import main
from strategies.hetero_splitee.statistics import SERVER_HALF

TIERED = NetworkSpec("lenet", 3, (1, 8, 8), width=1)
NO_COUNTS = {"labels.clients": torch.tensor([0, 1])}  # without the counts themselves
SPLIT = without_early_exits(TIERED)


def stored(folder: Path, spec: NetworkSpec, cut: int = 0, **others: Tensor) -> str:
    """Return the folder of a finished run, or of a device with a cut; `others` are the method's own tensors."""
    network = build(spec, seed=1)
    part, depth = (network.prefix_units(cut), 0) if cut else (network, len(network.tier_positions))
    info = ModelInfo(
        spec.to_json(),
        depth,
        ("a", "b", "c"),
        (0.5,),
        (0.5,),
        "",
        cut,
        "first",
        {SERVER_HALF: True} if not cut and spec is SPLIT else {},
    )
    save_model(folder / ("" if cut else "final") / FILE, part.state_dict() | others, info)
    return str(folder)


def test_offload_refuses_a_mistake_with_2_and_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = stored(tmp_path / "run", SPLIT)
    public = tmp_path / "public"
    public.write_text("token")
    public.chmod(0o644)
    for arguments, message in (
        (["--model", str(tmp_path / "absent")], "no model in"),
        (["--model", stored(tmp_path / "device", SPLIT, cut=1)], "is a device's part: give the run's folder"),
        (["--model", stored(tmp_path / "tiered", TIERED)], "is not a split training run"),
        (["--model", stored(tmp_path / "counts", SPLIT, **NO_COUNTS)], "not those of 2 clients and 3 classes"),
        (["--model", run, "--batch", "0"], "give 1 or more"),
        (["--model", run, "--token-file", str(public)], "chmod 600"),
        (["--model", run, "--address", "0.0.0.0:0"], "give the --name by which others reach it"),
        (["--model", run, "--address", "127.0.0.1"], "is not an address"),
        (["--model", run, "--address", "192.0.2.1:0"], "cannot listen at"),
    ):
        assert main(["offload", "--device", "cpu", *arguments]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
