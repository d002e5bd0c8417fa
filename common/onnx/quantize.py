"""Graphs in int8: weights per channel, activations by ranges that were measured on validation samples (QDQ, static).

Source: Jacob et al., CVPR 2018 (arXiv 1712.05877); onnxruntime's static quantization.
"""

import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from common.exits.policy import ThresholdPolicy, confidence
from common.onnx.export import Chain
from common.onnx.folder import LOGITS, Quantization
from common.onnx.runtime import Feed, onnxruntime

SAMPLES = 256  # that ranges are measured on
BATCH = 32
SUMS, PRODUCTS = ("Add", "Mul"), ("Gemm", "MatMul")


class InInt8(NamedTuple):
    """A network in int8."""

    graphs: list[bytes]
    policy: ThresholdPolicy  # for its confidences
    costs: Quantization


def in_int8(
    graphs: Sequence[bytes],
    inputs: NDArray[Any],
    labels: NDArray[np.int64],
    policy: ThresholdPolicy,
    macs: Sequence[int],
) -> InInt8:
    """Return the graphs in int8, with thresholds of their own, and what that costs.

    Args:
        graphs: in fp32.
        inputs: (N, ...) validation samples as the network takes them, never test samples.
        labels: (N,).
        policy: of fp32.
        macs: of a sample that leaves at each exit.
    """
    number = min(SAMPLES, len(inputs))
    chosen = inputs[np.arange(number) * len(inputs) // number]  # evenly: samples may lie in class order
    small = quantized(graphs, chosen)
    before, after = (all_logits(each, inputs) for each in (graphs, small))
    fitted, figures = refitted(policy, before, after), dict[str, Any]()
    for name, logits, own in (("_fp32", before, policy), ("", after, fitted)):
        left = replace(own, thresholds=own.thresholds[: len(logits) - 1]).exits(logits)
        right = logits.argmax(-1) == labels
        figures[f"accuracy{name}"] = right.mean(-1).tolist()
        figures[f"policy_accuracy{name}"] = float(right[left, np.arange(len(labels))].mean())
        figures[f"policy_macs{name}"] = float(np.asarray(macs)[left].mean())
    costs = Quantization(samples=len(inputs), calibrated_on=len(chosen), policy_refitted=fitted != policy, **figures)
    return InInt8(small, fitted, costs)


def refitted(policy: ThresholdPolicy, before: NDArray[np.float32], after: NDArray[np.float32]) -> ThresholdPolicy:
    """Return the policy by which as many samples leave at each exit of `after` as by `policy` of `before`.

    Thresholds are values of confidences, which int8 moves: with those of fp32 another share of the samples would
    leave, at other costs than the run's calibration chose. Where none or all leave, the threshold stays. It holds for
    a prefix, and for a split network's gate, too: nothing but the share is needed.

    Args:
        policy: of fp32.
        before: (E, N, classes), validation logits in fp32.
        after: likewise in int8.
    """
    thresholds = list(policy.thresholds)
    here, there = (np.ones(logits.shape[1], np.bool_) for logits in (before, after))  # which samples have not left
    for index in range(min(len(thresholds), len(before))):
        leaves = here & policy(index, before[index])
        scores = confidence(after[index], policy.measure)
        number, staying = int(leaves.sum()), np.sort(scores[there])[::-1]
        if 0 < number < min(int(here.sum()), len(staying)):
            thresholds[index] = float(staying[number - 1])
        here &= ~leaves
        there &= scores < thresholds[index]
    return replace(policy, thresholds=tuple(thresholds))


def quantized(graphs: Sequence[bytes], inputs: NDArray[Any]) -> list[bytes]:
    """Return the graphs in int8; `inputs` (N, ...) are samples as the network takes them, for the ranges."""
    chain = Chain(graphs)
    fed: list[list[Feed]] = [[] for _ in graphs]  # per segment: what goes into it, batch by batch
    for start in range(0, len(inputs), BATCH):
        for feeds, feed in zip(fed, chain(inputs[start : start + BATCH])[0], strict=True):
            feeds.append(feed)
    return [_quantized(graph, feeds) for graph, feeds in zip(graphs, fed, strict=True)]


def all_logits(graphs: Sequence[bytes], inputs: NDArray[Any]) -> NDArray[np.float32]:
    """Return the logits (E, N, classes) of all exits, of samples as the network takes them."""
    chain = Chain(graphs)
    batches = [np.stack(chain(inputs[start : start + BATCH])[1]) for start in range(0, len(inputs), BATCH)]
    return np.concatenate(batches, axis=1)


def _quantized(graph: bytes, feeds: Sequence[Feed]) -> bytes:
    onnxruntime()  # before any import of it
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        """Hands the batches out one after another."""

        def __init__(self) -> None:
            self._left = iter(feeds)

        def get_next(self) -> Feed | None:
            """Return the next batch, at the end None."""
            return next(self._left, None)

    with tempfile.TemporaryDirectory() as folder, _only_errors():
        plain, fused, small = (Path(folder) / name for name in ("plain.onnx", "fused.onnx", "small.onnx"))
        plain.write_bytes(graph)
        quant_pre_process(plain, fused, skip_symbolic_shape=True)  # fuses batch norm into convolutions
        quantize_static(
            fused, small, Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
            activation_type=QuantType.QInt8, weight_type=QuantType.QInt8, nodes_to_exclude=_classifier(fused),
        )  # fmt: skip
        return small.read_bytes()


@contextmanager
def _only_errors() -> Iterator[None]:
    """Keep the root logger's warnings back: the quantiser warns of every norm that has no channels to tell apart."""
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logging.root.setLevel(level)


def _classifier(file: Path) -> list[str]:
    """Return the names of the nodes from the last matrix product to the logits.

    They stay in fp32: they cost next to nothing, and logits of 256 levels would give many samples one confidence.
    """
    import onnx

    makers = {output: node for node in onnx.load(file).graph.node for output in node.output}
    names, wanted = list[str](), [LOGITS]
    while wanted:
        node = makers.get(wanted.pop())
        if node is not None and node.op_type in (*SUMS, *PRODUCTS):
            names.append(node.name)
            wanted += node.input if node.op_type in SUMS else []
    return names
