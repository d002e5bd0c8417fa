"""onnxruntime, imported in one place: its official Linux packages report sessions to their maker unless told not to.

From version 1.29 on they send names, hashes and times of models. The variable stops that if set before the import.
"""

import os
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.errors import UserError
from common.onnx.folder import CARRIED, FEATURES, HANDED_ON, INPUT, LOGITS

INSTALL = "pip install -e '.[export]', or on a device the packages of client/requirements.txt"
SILENT = "ORT_DISABLE_TELEMETRY"
Feed = dict[str, NDArray[Any]]  # what goes into a graph, by name


def onnxruntime() -> ModuleType:
    """Return the package, which sends nothing; raises `UserError` if it is not installed."""
    os.environ[SILENT] = "1"
    try:
        import onnxruntime as package
    except ImportError as error:
        raise UserError(f"ONNX needs the package 'onnxruntime', which is not installed: {INSTALL}") from error
    package.disable_telemetry_events()
    return package


def run_segment(session: Any, feed: Feed) -> tuple[NDArray[np.float32], Feed]:
    """Return the logits (b, classes) of a segment's exit, and what goes into the next segment.

    After the last segment that is the trunk's tensor under INPUT, or what went in if the graph does not give it.
    """
    names = [output.name for output in session.get_outputs()]
    found = dict(zip(names, session.run(None, feed), strict=True))
    carried = {CARRIED: found[HANDED_ON]} if HANDED_ON in found else {}
    return found[LOGITS], {INPUT: found.get(FEATURES, feed[INPUT]), **carried}


def open_session(graph: bytes, threads: int = 1) -> Any:
    """Return an inference session on the processor; raises what onnxruntime does for a graph that it cannot use."""
    package = onnxruntime()
    options = package.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3  # errors alone
    return package.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
