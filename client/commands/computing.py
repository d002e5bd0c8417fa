"""The options of the verbs that compute, apart from these verbs: they import torch, which takes seconds."""

import argparse
from pathlib import Path

from client.commands.capacity import add_capacity
from common.console.options import add_samples
from common.console.verbs import Verbs, later
from common.paths import output_file
from common.rpc import standalone
from common.rpc.framing import CODINGS

INFER = """\
`python -m client infer`: classify images or texts with a stored model, on this device alone or with a server.

Alone (`--mode local`), a sample leaves at the first exit that is confident enough and is computed no further, so
milliseconds and MACs are what the device really spends. Together (`--mode split`), a device that trained the first
layers of a network sends the features of samples that its own exit is unsure of to `python -m server offload`.

A folder that `python -m server export` made runs with onnxruntime, and needs neither torch nor Flower.
"""
SERVE_STUDENT = """\
`python -m client serve-student`: answer with a student's features, as one device of several (DistrEE).

The aggregator, `python -m server infer`, asks and adds the answers up. All devices of a run share one token in a file:
copy the first device's file to the others and to the aggregator, and off loopback each device's certificate too. With
the token, gRPC's health service and reflection answer here as well.
"""
PROBE = """\
`python -m client probe`: measure this machine, and show its depth and cut for every known network.

The depth is for methods with depth tiers, the cut for split training. In a run the server chooses the network, the
image size and the number of images; here the options do. With `--data` it shows what a run would read of this device's
folder of images instead.
"""


def add_infer(verbs: Verbs) -> None:
    """Add the verb `infer`."""
    parser = verbs.add_parser("infer", description=INFER)
    parser.add_argument("--mode", choices=("local", "split"), default="local", help="(default: %(default)s)")
    parser.add_argument(
        "--model", type=Path, required=True, help="folder of a run, of a device or of an export, or a model file"
    )
    add_samples(parser)
    parser.add_argument("--json", type=output_file, metavar="FILE", help="also write the results to this file")
    add_runtime(parser)
    local = parser.add_argument_group("local").add_mutually_exclusive_group()
    local.add_argument("--accuracy-first", action="store_true", help="use the last exit for every image")
    local.add_argument("--threshold", type=float, help="leave at this confidence (default: the calibrated ones)")
    split = parser.add_argument_group("split")
    split.add_argument("--server", metavar="HOST:PORT", help="address of `python -m server offload`")
    split.add_argument("--token-file", type=Path, metavar="FILE", help="copy of the server's token")
    split.add_argument("--certificate", type=Path, metavar="PEM", help="the server's certificate, off loopback")
    split.add_argument("--coding", choices=tuple(CODINGS), help="of the sent features (default: fp32)")
    split.add_argument("--tau", type=float, help="answer on the device up to this entropy / log C (default: tuned)")
    split.add_argument("--deadline", type=float, metavar="S", help="seconds to wait for the server (default: 2)")
    split.add_argument("--sweep", action="store_true", help="send every image once and compare taus from 0 to 1")
    parser.set_defaults(run=later("client.commands.infer"))


def add_serve_student(verbs: Verbs) -> None:
    """Add the verb `serve-student`."""
    parser = verbs.add_parser("serve-student", description=SERVE_STUDENT)
    parser.add_argument("--model", type=Path, required=True, help="student-NUMBER.safetensors, or its exported folder")
    standalone.add_options(parser)
    parser.add_argument("--policy", default="", metavar="NAME", help="exit policy (default: the calibrated one)")
    parser.add_argument("--batch", type=int, default=64, help="most images per call (default: %(default)s)")
    add_runtime(parser)
    parser.add_argument(
        "--slowdown", type=float, default=1.0, metavar="FACTOR",
        help="imitate a device that takes FACTOR times as long: sleep after each exit in proportion to its time "
        "(default: %(default)s, no sleep)",
    )  # fmt: skip
    parser.set_defaults(run=later("client.commands.serve_student"))


def add_runtime(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what computes."""
    parser.add_argument(
        "--runtime", choices=("torch", "onnx"), help="what computes (default: onnx for an exported folder, else torch)"
    )
    parser.add_argument("--threads", type=int, default=1, help="compute threads (default: %(default)s)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="of torch")


def add_probe(verbs: Verbs) -> None:
    """Add the verb `probe`."""
    parser = verbs.add_parser("probe", description=PROBE)
    add_capacity(parser)
    parser.add_argument("--samples", type=int, default=1000, help="images per epoch (default: %(default)s)")
    parser.add_argument("--image-size", type=int, default=32, help="pixels per side (default: %(default)s)")
    parser.add_argument("--network", metavar="NAME", help="only this network (default: all)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="only show what is in this folder of images")
    parser.set_defaults(run=later("client.commands.probe"))
