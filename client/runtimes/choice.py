"""Which runtime a command uses; torch is imported only for torch's."""

import argparse
from pathlib import Path

from client.runtimes.base import Runtime
from common.errors import UserError
from common.onnx.folder import is_exported


def wanted(options: argparse.Namespace) -> str:
    """Return "torch" or "onnx": what the options say, else what the model is made for; raises `UserError`."""
    check_threads(options)
    chosen = options.runtime or ("onnx" if is_exported(options.model) else "torch")
    if chosen == "onnx" and options.device == "cuda":
        raise UserError(
            "--device cuda: ONNX computes on the processor here; leave --device out, or use --runtime torch"
        )
    return str(chosen)


def check_threads(options: argparse.Namespace) -> None:
    """Raise `UserError` for no thread."""
    if options.threads < 1:
        raise UserError(f"--threads {options.threads}: give 1 or more")


def open_network(options: argparse.Namespace, *, split: bool) -> Runtime:
    """Return the network of `--model`: a device's half if `split`, else one that answers alone.

    Raises `UserError` when there is none, or it is of the other kind.
    """
    if wanted(options) == "onnx":
        from client.runtimes.with_onnx import OnnxNetwork

        return OnnxNetwork.open(Path(options.model), options.threads, split=split)
    from client.runtimes.with_torch import TorchNetwork

    return TorchNetwork.open(Path(options.model), options.threads, options.device, split=split)
