"""onnxruntime, imported in one place: its official Linux packages report sessions to their maker unless told not to.

From version 1.29 on they send names, hashes and times of models. The variable stops that if set before the import.
"""

import os
from types import ModuleType
from typing import Any

from common.errors import UserError

INSTALL = "pip install -e '.[export]', or on a device the packages of client/requirements.txt"
SILENT = "ORT_DISABLE_TELEMETRY"


def onnxruntime() -> ModuleType:
    """Return the package, which sends nothing; raises `UserError` if it is not installed."""
    os.environ[SILENT] = "1"
    try:
        import onnxruntime as package
    except ImportError as error:
        raise UserError(f"ONNX needs the package 'onnxruntime', which is not installed: {INSTALL}") from error
    package.disable_telemetry_events()
    return package


def open_session(graph: bytes, threads: int = 1) -> Any:
    """Return an inference session on the processor; raises what onnxruntime does for a graph that it cannot use."""
    package = onnxruntime()
    options = package.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3  # errors alone
    return package.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
