"""The options of the verbs that compute, apart from these verbs: they import torch, which takes seconds."""

import argparse
from pathlib import Path

from common.console.options import add_samples
from common.console.verbs import Verbs, later
from common.paths import output_file
from common.rpc import standalone
from common.rpc.framing import CODINGS
from server.commands.overrides import add_overrides

DEADLINE, CODING = 1.0, "fp32"  # defaults of the options for devices
PEAK_LR = 0.1  # as in `strategies.distree.training.central.Schedule`

DATA = """\
`python -m server data`: show what a run with these keys would read, and end.

Classes with their samples per split, the shape of a sample, samples per client, and a note on everything that was left
out or changed. The keys are those of `python -m server run`; only `data.*`, `clients.count` and `run.seed` count.
"""
EXPORT = """\
`python -m server export`: write a finished network as ONNX graphs, for devices that have no room for torch.

There is a graph per segment between exits, so that inference really leaves early, and `model.json` with everything
else. `python -m client infer` and `python -m client serve-student` take the folder as `--model`. A model can be a run's
folder, the folder that a device stored, or a student's file; of a folder of students each gets a folder of its own.
"""
OFFLOAD = """\
`python -m server offload`: serve the server's layers of a finished split training run to its devices.

Devices connect with `python -m client infer --mode split`. No run is live then, so both sides share a token in a file:
copy it to every device, and off loopback the certificate too. Requests with the token also reach gRPC's health service
and reflection.
"""
STUDENTS = """\
`python -m server teacher` and `students`: train DistrEE's teacher and its students on the server's own data.

Both read keys of the run configuration: `data.*` for the images, `network.*` for the network to train (the teacher, or
a student's backbone), `distree.*` for how the teacher is partitioned and imitated. Other keys of a preset are ignored.
After every epoch a checkpoint is written to --out: the same command continues a training that was killed.
"""
CALIBRATE = """\
`python -m server calibrate`: give trained students another operating point.

Thresholds are fitted on the validation images of the students' training, to an accuracy loss, a share of the MACs, or a
latency; for a latency every exit is timed on the devices that serve the students. `distree.exit-rule` says what they
are compared with. The thresholds are stored under a name of their own. For students of a run, its configuration says
which images those are; for students of `python -m server students` give the `data.*` and `run.seed` of that command.
"""
INFER = """\
`python -m server infer`: classify images with students on several devices, which stop by themselves.

Every device gets each image once, computes until its own exit policy stops it, and sends that exit's features; the
server adds them up. A device that misses the deadline is left out: the mean feature of the validation images stands in
for it, and the table says so. An image that no device answered has no label.
"""


def add_data(verbs: Verbs) -> None:
    """Add the verb `data`."""
    parser = verbs.add_parser("data", description=DATA)
    add_overrides(parser)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.set_defaults(run=later("server.commands.data"))


def add_export(verbs: Verbs) -> None:
    """Add the verb `export`."""
    parser = verbs.add_parser("export", description=EXPORT)
    parser.add_argument("--model", type=Path, required=True, help="folder of a finished run or device, or a model file")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="new folder (default: `onnx` beside the model)")
    parser.add_argument(
        "--quantize", choices=("int8",), help="weights and activations in int8, by the run's validation samples"
    )
    parser.add_argument(
        "--run-folder", type=Path, metavar="FOLDER", help="the model's run, for --quantize of a device's folder"
    )
    parser.set_defaults(run=later("server.commands.export"))


def add_offload(verbs: Verbs) -> None:
    """Add the verb `offload`."""
    parser = verbs.add_parser("offload", description=OFFLOAD)
    parser.add_argument("--model", type=Path, required=True, help="a finished split training run's folder")
    standalone.add_options(parser)
    parser.add_argument("--batch", type=int, default=64, help="most images per call (default: %(default)s)")
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to compute (default: %(default)s)"
    )
    parser.set_defaults(run=later("server.commands.offload"))


def add_students(verbs: Verbs) -> None:
    """Add the verbs `teacher` and `students`."""
    teacher = verbs.add_parser("teacher")
    teacher.set_defaults(run=later("server.commands.distree.students", "run_teacher"))
    students = verbs.add_parser("students")
    students.add_argument("--teacher", type=Path, required=True, help="a finished run's folder, or a model file")
    students.add_argument(
        "--seed", type=int, help="of the students' first weights and the order of images (default: run.seed)"
    )
    students.set_defaults(run=later("server.commands.distree.students", "run_students"))
    for parser in (teacher, students):
        parser.description = STUDENTS
        add_overrides(parser)
        parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="new folder for the results")
        parser.add_argument("--epochs", type=int, default=30, help="passes over the images (default: %(default)s)")
        parser.add_argument("--lr", type=float, default=PEAK_LR, help="peak learning rate (default: %(default)s)")
        parser.add_argument("--no-augmentation", action="store_true", help="no random crops and flips")
        parser.add_argument("--autocast", action="store_true", help="compute in bf16 where torch's autocast does")


def add_calibrate(verbs: Verbs) -> None:
    """Add the verb `calibrate`."""
    parser = verbs.add_parser("calibrate", description=CALIBRATE)
    parser.add_argument("--model", type=Path, required=True, help="a finished distree run, or what `students` made")
    wanted = parser.add_mutually_exclusive_group(required=True)
    wanted.add_argument(
        "--accuracy-loss",
        type=float,
        metavar="LOSS",
        help="largest accuracy loss with its standard error; 0.02: two points",
    )
    wanted.add_argument(
        "--macs", type=float, metavar="SHARE", help="largest share of the MACs of all students up to their last exits"
    )
    wanted.add_argument("--latency-ms", type=float, metavar="MS", help="largest mean latency of the slowest device")
    wanted.add_argument("--p99-ms", type=float, metavar="MS", help="the same for 99 in 100 images")
    parser.add_argument("--name", help="name of the policies (default: the target's, such as loss-0.02 or p99-8ms)")
    add_overrides(parser)
    add_devices(parser, required=False)
    parser.set_defaults(run=later("server.commands.distree.calibrate"))


def add_infer(verbs: Verbs) -> None:
    """Add the verb `infer`."""
    parser = verbs.add_parser("infer", description=INFER)
    parser.add_argument("--model", type=Path, required=True, help="a finished distree run, or what `students` made")
    add_devices(parser, required=True)
    add_samples(parser)
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--policy", metavar="NAME", help="exit policy (default: each device's own)")
    how.add_argument("--target-ms", type=float, help="adapt the exits to answer nine in ten batches within this time")
    how.add_argument("--compare", action="store_true", help="compare all policies, on images of known class")
    parser.add_argument("--json", type=output_file, metavar="FILE", help="write the results to this file too")
    parser.set_defaults(run=later("server.commands.distree.infer"))


def add_devices(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """Add the options that `devices.ask` reads."""
    parser.add_argument(
        "--student", action="append", default=[], metavar="NUMBER=HOST:PORT", required=required,
        help="where `python -m client serve-student` listens; once per student",
    )  # fmt: skip
    parser.add_argument(
        "--token-file", type=Path, metavar="FILE", required=required, help="a copy of the devices' token file"
    )
    parser.add_argument(
        "--certificate", action="append", default=[], metavar="NUMBER=PEM", help="certificate of a device off loopback"
    )
    parser.add_argument(
        "--deadline", type=float, default=DEADLINE, metavar="S", help="seconds for an answer (default: %(default)s)"
    )
    parser.add_argument(
        "--coding", choices=tuple(CODINGS), default=CODING, help="number format of the features (default: %(default)s)"
    )
