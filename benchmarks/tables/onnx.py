"""Figures of inference with ONNX beside torch."""

from typing import Any

from benchmarks.tables.cells import Figures, Read, table

RUNTIMES = ("torch", "onnx", "onnx int8")


def figures(read: Read) -> Figures:
    """Return every figure of the section on a device without torch."""
    result = read("onnx_runtime")
    networks, disk = result["networks"].values(), result["installed_mb"]
    return {
        "times": times(result["networks"]),
        "costs": costs(result),
        "disk_torch": f"{disk['torch_without_cuda']:.0f}",
        "disk_cuda": f"{disk['torch'] / 1000:.1f}",
        "disk_onnx": f"{disk['onnx']:.0f}",
        "faster": _between(one["torch"]["whole"] / one["onnx"]["whole"] for one in networks),
        "faster_batch": _between(one["torch"]["batch"] / one["onnx"]["batch"] for one in networks),
        "int8_faster": _between(one["onnx"]["whole"] / one["onnx int8"]["whole"] for one in networks),
        "early_onnx": _between((100 * one["onnx"]["early"] / one["onnx"]["whole"] for one in networks), digits=0),
        "early_torch": _between((100 * one["torch"]["early"] / one["torch"]["whole"] for one in networks), digits=0),
        "early_macs": _between((100 * one["onnx"]["macs"] for one in networks), digits=0),
        "onnxruntime": result["onnx_versions"]["onnxruntime"],
        "torch": result["about"]["torch"],
    }  # fmt: skip


def times(networks: dict[str, dict[str, dict[str, float]]]) -> str:
    """Return the table of milliseconds per image."""
    rows = []
    for title, found in networks.items():
        for key, what in (("whole", "one image"), ("batch", "32 at once"), ("early", "one image, early exits")):
            rows.append((f"{title}, {what}", *(f"{found[runtime][key]:.2f}" for runtime in RUNTIMES)))
    return table(("ms per image", "torch", "ONNX", "ONNX int8"), rows)


def costs(result: dict[str, Any]) -> str:
    """Return the table of files, memory and time to start."""
    rows = []
    for title, found in result["networks"].items():
        for key, what, digits in (
            ("files_mb", "MB of files", 2),
            ("peak_mb", "MB at most", 0),
            ("ready_s", "s to start", 1),
        ):
            rows.append((f"{title}, {what}", *(f"{found[runtime][key]:.{digits}f}" for runtime in RUNTIMES)))
    return table(("", "torch", "ONNX", "ONNX int8"), rows)


def _between(values: Any, digits: int = 1) -> str:
    least, *_, greatest = sorted(values)
    return f"{least:.{digits}f} to {greatest:.{digits}f}"
