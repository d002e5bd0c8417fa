"""Write a network as ONNX graphs, one per segment between exits, so that inference really leaves early.

Graphs come from torch.export (`torch.onnx.export(dynamo=True)`): the older TorchScript exporter fails on the attention
of the transformers here and is no longer developed.
"""

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from common.data.images import Normalizer
from common.errors import UserError
from common.exits import ThresholdPolicy
from common.networks import EarlyExitNetwork, cost_table
from common.onnx.folder import (
    CARRIED,
    CLASSIFIER,
    FEATURES,
    FILE,
    HANDED_ON,
    INPUT,
    LOGITS,
    SEGMENTS,
    Exported,
    Images,
    Quantization,
    Student,
    Texts,
    describe,
)
from common.onnx.runtime import Feed, open_session, run_segment
from common.seeding import generator
from common.storage.files import write_bytes, write_text

MADE_BY = ("torch", "onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-4  # of a logit, absolute, or relative where it is above 1


@dataclass(frozen=True)
class Description:
    """What the JSON file says besides the graphs."""

    kind: str  # see `Exported`
    run: str
    backbone: str
    classes: tuple[str, ...]
    normalizer: Normalizer
    policy: ThresholdPolicy
    cut: int = 0
    client: int | None = None


class _Segment(nn.Module):
    """A part with one exit, as a function from tensors to tensors."""

    def __init__(self, part: EarlyExitNetwork, *, features: bool, carries: bool) -> None:
        super().__init__()
        self.part, self.features, self.carries = part, features, carries

    @property
    def outputs(self) -> list[str]:
        """The names of what `forward` returns."""
        return [name for name, given in ((FEATURES, self.features), (LOGITS, True), (HANDED_ON, self.carries)) if given]

    def forward(self, x: Tensor, carried: Tensor | None = None) -> tuple[Tensor, ...]:
        """Return ([the tensor after the last unit,] the exit's logits[, what the next exit needs])."""
        found = self.part.forward_exits(x, carried=carried)
        assert found.carried is not None  # there is an exit
        every = {FEATURES: found.trunk, LOGITS: found.logits[0], HANDED_ON: found.carried}
        return tuple(every[name] for name in self.outputs)


def carries(network: EarlyExitNetwork) -> bool:
    """Return whether exits need something of those before them."""
    return network.ensemble != 0.0 or network.recurrent is not None


def make_graphs(network: EarlyExitNetwork, *, features: bool) -> list[bytes]:
    """Return the graphs of a network in eval mode, shallow to deep; `features`: the last one has its trunk's tensor.

    Raises `UserError` without the packages that this needs, and for a network whose operations cannot be exported.
    """
    _require()
    parts, graphs = network.segments(), list[bytes]()
    x, carried = network.example(2), None
    for index, part in enumerate(parts):
        last = index == len(parts) - 1
        segment = _Segment(part, features=features or not last, carries=carries(network) and not last).eval()
        tensors = {INPUT: x} | ({} if carried is None else {CARRIED: carried})
        graphs.append(_graph(segment, tensors))
        with torch.no_grad():
            found = part.forward_exits(x, carried=carried)
        x, carried = found.trunk, found.carried if carries(network) else None
    return graphs


def _graph(segment: _Segment, tensors: dict[str, Tensor]) -> bytes:
    batch = torch.export.Dim("batch", min=1)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter warns about its own internals
        try:
            program = torch.onnx.export(
                segment, tuple(tensors.values()), dynamo=True, verbose=False, external_data=False,
                input_names=list(tensors), output_names=segment.outputs,
                dynamic_shapes=tuple({0: batch} for _ in tensors),
            )  # fmt: skip
        except Exception as error:  # of many kinds, for what a network from outside may do
            reason = str(error.__cause__ or error).partition("\n")[0]
            units = segment.part.units
            raise UserError(
                f"unit{'s' * (len(units) > 1)} {', '.join(units)} cannot be exported ({reason}): write the network "
                "without conditions on values, and with operations that torch.export knows"
            ) from error
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program")
    return bytes(program.model_proto.SerializeToString())


class Chain:
    """Graphs as onnxruntime computes them, every segment for all samples."""

    def __init__(self, graphs: Sequence[bytes]) -> None:
        self.sessions = [open_session(graph) for graph in graphs]

    def __call__(self, x: NDArray[Any]) -> tuple[list[Feed], list[NDArray[np.float32]]]:
        """Return what goes into each segment, and the logits (B, classes) of each exit."""
        feeds, logits = [{INPUT: x}], list[NDArray[np.float32]]()
        for session in self.sessions:
            found, following = run_segment(session, feeds[-1])
            logits.append(found)
            feeds.append(following)
        return feeds[:-1], logits


def difference(network: EarlyExitNetwork, graphs: Sequence[bytes]) -> float:
    """Return how far a logit is from torch's on random inputs; raises `UserError` if that is more than rounding."""
    shape, random = (5, *network.input_shape), generator("export check")
    x = (
        torch.randint(1, network.vocabulary, shape, generator=random)
        if network.vocabulary
        else torch.randn(shape, generator=random)
    )
    with torch.no_grad():
        expected = torch.stack(network(x)).numpy()
    _, found = Chain(graphs)(x.numpy())
    apart = np.abs(np.stack(found) - expected)
    if not (apart <= TOLERANCE * np.maximum(1.0, np.abs(expected))).all():
        raise UserError(f"the exported graphs differ from the network by {apart.max():.2g}: please report this")
    return float(apart.max())


def check_out(out: Path) -> None:
    """Raise `UserError` for a file, and for a folder that holds other files but no export."""
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file: give a folder")
    if out.is_dir() and {*out.iterdir()} - _own(out) and not (out / FILE).is_file():
        raise UserError(f"--out {out} holds other files: give a new folder")


def prepare(out: Path) -> None:
    """Make a folder for an export, without an older export in it; raises `UserError` as `check_out` does.

    Call it when all that is to be written is at hand: an export that fails before leaves the older one as it is.
    """
    check_out(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / FILE).unlink(missing_ok=True)  # the last that is written: without it the folder is no export
    for old in _own(out):
        old.unlink(missing_ok=True)


def _own(out: Path) -> set[Path]:
    """Return the paths of an export's files, also of one that was not finished."""
    return {out / FILE, out / CLASSIFIER, *out.glob(SEGMENTS)}


def write_export(
    out: Path,
    network: EarlyExitNetwork,
    graphs: Sequence[bytes],
    about: Description,
    *,
    largest_difference: float,
    student: Student | None = None,
    quantization: Quantization | None = None,
) -> Exported:
    """Write the graphs and, last, the JSON file into a folder that `prepare` made."""
    costs, segments = cost_table(network), list[dict[str, Any]]()
    for index, graph in enumerate(graphs):
        name = f"segment-{index + 1}.onnx"
        write_bytes(out / name, graph)
        segments.append({**describe(name, graph), "macs": costs.macs(index)})
    with torch.no_grad():
        feature_shape = tuple(network.features_at(network.example(1), network.end).shape[1:]) if about.cut else ()
    exported = Exported.model_validate({
        "kind": about.kind, "run": about.run, "network": about.backbone, "classes": about.classes,
        "exits": network.exit_positions, "carries": carries(network), "cut": about.cut,
        "client": about.client, "feature_shape": feature_shape, "input": _input(network, about.normalizer),
        "policy": json.loads(about.policy.to_json()), "segments": segments, "student": student,
        "quantization": quantization, "largest_difference": largest_difference,
        "versions": {name: version(name) for name in MADE_BY},
    })  # fmt: skip
    absent = {"client"} if exported.client is None else None  # which an older installation does not know
    write_text(out / FILE, json.dumps(exported.model_dump(mode="json", exclude=absent), indent=1) + "\n")
    return exported


def _input(network: EarlyExitNetwork, normalizer: Normalizer) -> Images | Texts:
    if network.vocabulary:
        return Texts(length=network.input_shape[0], vocabulary=network.vocabulary)
    channels, height, width = network.input_shape
    return Images(channels=channels, height=height, width=width, mean=normalizer.mean, std=normalizer.std)


def _require() -> None:
    for name in MADE_BY:
        try:
            version(name)
        except ImportError as error:  # PackageNotFoundError is one
            raise UserError(
                f"the export needs the package {name!r}, which is not installed: pip install -e '.[export]'"
            ) from error
