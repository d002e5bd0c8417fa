"""An exported network that onnxruntime computes, without torch."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load

from client.runtimes.base import HalfOutputs, Inference, Leaves
from common.console.samples import Takes
from common.data.normalising import ArrayNormalizer
from common.data.support import one_line
from common.errors import UserError
from common.onnx.folder import (
    CARRIED,
    FEATURES,
    HANDED_ON,
    INPUT,
    LOGITS,
    REMEDY,
    Exported,
    Images,
    Student,
    read_exported,
    read_stored,
)
from common.onnx.runtime import open_session, run_segment
from strategies.distree.exits.policies import ExitPolicy, policy_from_json
from strategies.distree.serving.service import Stopped


class Left(NamedTuple):
    """The samples that leave at one exit."""

    exit: int  # from 0
    rows: NDArray[np.int64]  # (b,), rising: which samples of the batch
    logits: NDArray[np.float32]  # (b, classes)


class Graphs:
    """The segments of an exported network, one after another."""

    def __init__(self, folder: Path, exported: Exported, threads: int) -> None:
        """Load all segments; raises `UserError` when a file is missing or damaged, or a graph does not fit."""
        self.sessions = [
            _session(folder / segment.file, read_stored(folder, segment), threads) for segment in exported.segments
        ]
        constants = exported.input
        self.normalise = (
            ArrayNormalizer(constants.mean, constants.std) if isinstance(constants, Images) else ArrayNormalizer((), ())
        )
        self._check(folder, exported)

    def leave(self, inputs: NDArray[Any], leaves: Leaves) -> Iterator[Left]:
        """Yield the samples that leave at each exit, shallow to deep, possibly none: `EarlyExitNetwork.leave`.

        A segment runs only when the caller asks for the next exit. The last yield is where the last sample leaves.
        """
        rows, feed = np.arange(len(inputs)), {INPUT: self.normalise(inputs)}
        for index, session in enumerate(self.sessions):
            logits, feed = run_segment(session, feed)
            last = index == len(self.sessions) - 1
            gone = np.ones(len(rows), np.bool_) if last else leaves(index, logits)
            yield Left(index, rows[gone], logits[gone])
            stay = ~gone
            if not stay.any():
                break
            rows, feed = rows[stay], {name: values[stay] for name, values in feed.items()}

    def all(self, inputs: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the tensor after the last segment and the logits of its exit."""
        logits, feed = run_segment(self.sessions[0], {INPUT: self.normalise(inputs)})
        for session in self.sessions[1:]:
            logits, feed = run_segment(session, feed)
        return feed[INPUT], logits

    def _check(self, folder: Path, exported: Exported) -> None:
        """Raise `UserError` unless the graphs take and give what the JSON says."""
        length = exported.student.length if exported.student else len(exported.classes)
        shape: Sequence[Any] = exported.shape
        carried: Sequence[Any] = ()
        for index, (session, segment) in enumerate(zip(self.sessions, exported.segments, strict=True)):
            last = index == len(exported.segments) - 1
            inputs = {each.name: tuple(each.shape[1:]) for each in session.get_inputs()}
            outputs = {each.name: tuple(each.shape[1:]) for each in session.get_outputs()}
            expected = {INPUT: tuple(shape)} | ({CARRIED: tuple(carried)} if index and exported.carries else {})
            names = [LOGITS] if last and not exported.feature_shape else [FEATURES, LOGITS]
            names += [HANDED_ON] if exported.carries and not last else []
            fits = inputs == expected and list(outputs) == names and outputs[LOGITS] == (length,)
            shape, carried = outputs.get(FEATURES, ()), outputs.get(HANDED_ON, ())
            if not fits or (last and tuple(shape) != exported.feature_shape):
                raise UserError(f"{folder / segment.file} does not fit model.json: {REMEDY}")


class OnnxNetwork:
    """See `base.Runtime`."""

    def __init__(self, graphs: Graphs, exported: Exported) -> None:
        self.graphs = graphs
        self.run, self.cut, self.client, self.classes = exported.run, exported.cut, exported.client, exported.classes
        self.takes, self.policy = Takes(exported.shape, exported.vocabulary), exported.exit_policy()
        self.macs = tuple(segment.macs for segment in exported.segments)
        self.feature_shape = exported.feature_shape

    @classmethod
    def open(cls, path: Path, threads: int, *, split: bool) -> "OnnxNetwork":
        """Load an exported folder; raises `UserError` when there is none, it is damaged, or not of this kind."""
        folder, exported = read_exported(path, ("split",) if split else ("network", "split"))
        return cls(Graphs(folder, exported, threads), exported)

    def infer(self, inputs: NDArray[Any], leaves: Leaves) -> Inference:
        """Run early-exit inference."""
        logits = np.empty((len(inputs), len(self.classes)), np.float32)
        exits = np.empty(len(inputs), np.int64)
        for left in self.graphs.leave(inputs, leaves):
            logits[left.rows], exits[left.rows] = left.logits, left.exit
        return Inference(logits, exits)

    def half(self, inputs: NDArray[Any]) -> HalfOutputs:
        """Run all of a split network's device half."""
        features, logits = self.graphs.all(inputs)
        return HalfOutputs(logits, features)


class OnnxStudent:
    """See `strategies.distree.serving.service.Served`."""

    def __init__(self, graphs: Graphs, exported: Exported, student: Student, classifier: dict[str, Any]) -> None:
        self.graphs, self.run, self.number = graphs, exported.run, student.number
        self.input_shape, self.length, self.num_exits = exported.shape, student.length, len(exported.exits)
        self.policies: dict[str, ExitPolicy] = {
            name: policy_from_json(json.dumps(values)) for name, values in student.policies.items()
        }
        self._columns = classifier["block"], classifier["bias"]
        self._own = classifier["own.weight"], classifier["own.bias"]

    @classmethod
    def open(cls, path: Path, threads: int) -> "OnnxStudent":
        """Load an exported folder; raises `UserError` when there is none, it is damaged, or holds no student."""
        folder, exported = read_exported(path, ("student",))
        student = exported.student
        assert student is not None  # `read_exported` has checked that
        try:
            classifier = load(read_stored(folder, student.classifier))
            expected = (len(exported.exits), len(exported.classes), student.length)
            fits = all(classifier[name].shape == expected for name in ("block", "own.weight"))
            fits &= all(classifier[name].shape == expected[:2] for name in ("bias", "own.bias"))
        except (SafetensorError, KeyError, ValueError) as error:
            raise UserError(f"{folder / student.classifier.file} is damaged: {REMEDY}") from error
        if not fits:
            raise UserError(f"{folder / student.classifier.file} does not fit model.json: {REMEDY}")
        return cls(Graphs(folder, exported, threads), exported, student, classifier)

    def classify(self, exit_index: int, features: NDArray[np.float32], own: bool = False) -> NDArray[np.float32]:
        """Return the logits (b, classes) of this student alone, see `exits.scores.Classify`."""
        weight, bias = self._own if own else self._columns
        found: NDArray[np.float32] = features @ weight[exit_index].T + bias[exit_index]
        return found

    def leave(self, pixels: NDArray[np.uint8], leaves: Leaves) -> Iterator[Stopped]:
        """Yield the samples that leave at each exit."""
        return (Stopped(*left) for left in self.graphs.leave(pixels, leaves))


def _session(file: Path, content: bytes, threads: int) -> Any:
    try:
        return open_session(content, threads)
    except UserError:
        raise
    except Exception as error:  # onnxruntime raises many kinds for a graph that is damaged or too new
        raise UserError(f"{file} cannot be used by onnxruntime ({one_line(error)}): update it, or {REMEDY}") from error
