"""Stored networks and their exports, small enough for the default tests."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.onnx._internal.exporter._registration import ONNXRegistry

from client.runtimes.with_onnx import OnnxNetwork
from client.runtimes.with_torch import TorchNetwork
from common.data.images import Normalizer
from common.exits import ThresholdPolicy, budget_fractions, fit_thresholds
from common.networks import NetworkSpec, build
from common.seeding import generator
from common.storage.model_file import FILE, ModelInfo, StoredModel, save_model
from server.commands.export import export_model

CPU = torch.device("cpu")
# Two thirds of a small export are torch's reading of onnxscript's operators, anew each time; tests read them once.
ONNXRegistry.from_torchlib = staticmethod(cache(ONNXRegistry.from_torchlib))


def samples(spec: NetworkSpec, number: int, seed: int = 1) -> NDArray[Any]:
    """Return random pixels or token ids, texts with padding at their end."""
    shape = (number, *spec.input_shape)
    if not spec.vocabulary:
        return torch.randint(0, 256, shape, generator=generator("pixels", seed)).numpy().astype(np.uint8)
    ids = torch.randint(1, spec.vocabulary, shape, generator=generator("ids", seed)).numpy().astype(np.int32)
    for row, text in enumerate(ids):
        text[1 + row % len(text) :] = 0
    return ids


def stored(spec: NetworkSpec, *, depth: int = 0, cut: int = 0) -> StoredModel:
    """Return a network with random weights and the running statistics of random samples, whose exits differ."""
    network = build(spec, seed=1)
    normalizer = Normalizer((), ()) if spec.vocabulary else Normalizer((0.4,), (0.3,))
    x = normalizer(torch.from_numpy(samples(spec, 32)))
    with torch.no_grad():
        for name, value in network.named_parameters():
            if "adapter" in name:  # adapters start at zero
                value.normal_(std=0.05, generator=generator(name))
        for _ in range(10):
            network.train()(x)
        network.eval()
        part = network.prefix_units(cut) if cut else network.prefix(depth) if depth else network
        logits = torch.stack(part(x))
    policy = fit_thresholds(logits, budget_fractions(len(logits), 1.0))
    if cut:
        policy = ThresholdPolicy((0.2,), "entropy")
    classes = tuple(f"class {label}" for label in range(spec.num_classes))
    return StoredModel(part, spec, classes, normalizer, policy, cut, "a run")


def save(folder: Path, model: StoredModel, depth: int) -> Path:
    """Store a network as a run does."""
    info = ModelInfo(
        model.spec.to_json(), depth, model.classes, model.normalizer.mean, model.normalizer.std, model.policy.to_json(),
        model.cut, model.run,
    )  # fmt: skip
    save_model(folder / FILE, model.network.state_dict(), info)
    return folder


def both(model: StoredModel, out: Path) -> tuple[TorchNetwork, OnnxNetwork]:
    """Return a stored network as torch computes it, and its export as onnxruntime does."""
    export_model(model, out)
    return TorchNetwork(model, CPU), OnnxNetwork.open(out, 1, split=False)


def assert_same(one: TorchNetwork, other: OnnxNetwork, inputs: NDArray[Any], sizes: Sequence[int] = (1, 7)) -> None:
    """Check that both leave at the same exits with the same labels and, but for rounding, the same logits."""
    for size in sizes:
        for start in range(0, len(inputs), size):
            batch = inputs[start : start + size]
            expected, found = (network.infer(batch, one.policy) for network in (one, other))
            assert found.exits.tolist() == expected.exits.tolist()
            assert found.logits.argmax(-1).tolist() == expected.logits.argmax(-1).tolist()
            np.testing.assert_allclose(found.logits, expected.logits, atol=1e-4, rtol=0)
