"""One rule for torch's tensors and numpy's arrays: a device that infers with ONNX has no torch.

numpy 2 and torch share most names (the Python array API). What differs stands here. Without annotations of arrays,
because a rule takes either kind and returns the same kind.
"""

import sys
from types import ModuleType
from typing import Any

import numpy as np


def namespace(array: Any) -> ModuleType:
    """Return the module whose functions take this array: torch for a tensor, else numpy."""
    return np if isinstance(array, np.ndarray | np.generic) else sys.modules["torch"]


def full(length: int, value: Any, like: Any, dtype: str) -> Any:
    """Return a vector (length,) of one value, of a dtype by its common name, where `like` is."""
    xp = namespace(like)
    where = {} if xp is np else {"device": like.device}
    return xp.full((length,), value, dtype=getattr(xp, dtype), **where)


def vector(values: Any, like: Any, dtype: str) -> Any:
    """Return a vector of plain numbers, of a dtype by its common name, where `like` is."""
    xp = namespace(like)
    return np.asarray(values, getattr(np, dtype)) if xp is np else xp.tensor(
        values, dtype=getattr(xp, dtype), device=like.device
    )  # fmt: skip


def double(array: Any) -> Any:
    """Return the array as float64."""
    xp = namespace(array)
    return array.astype(np.float64) if xp is np else array.double()


def quick(array: Any) -> Any:
    """Return a tensor of the processor as numpy's array, else the array: small operations take a third of the time."""
    return array.detach().numpy() if namespace(array) is not np and array.device.type == "cpu" else array


def softmax(logits: Any) -> Any:
    """Return the softmax over the last axis."""
    if namespace(logits) is not np:
        return logits.softmax(-1)
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def two_largest(array: Any) -> Any:
    """Return the two largest values (..., 2) along the last axis, the largest first."""
    if namespace(array) is not np:
        return array.topk(2, -1).values
    return np.partition(array, -2, -1)[..., :-3:-1]


def entropy(probabilities: Any) -> Any:
    """Return the entropy over the last axis, in nats; 0 log 0 is 0."""
    xp = namespace(probabilities)
    if xp is not np:
        return xp.special.entr(probabilities).sum(-1)
    logarithms = np.log(probabilities, out=np.zeros_like(probabilities), where=probabilities > 0)
    return -(probabilities * logarithms).sum(-1)


def first_true(flags: Any) -> Any:
    """Return the index int64 of the first true value along the first axis; 0 without any."""
    # argmax of 0/1 returns the first 1
    return flags.argmax(0) if namespace(flags) is np else flags.to(sys.modules["torch"].uint8).argmax(0)
