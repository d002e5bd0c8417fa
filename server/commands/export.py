"""`python -m server export`: write a finished network as ONNX graphs, for devices without torch."""

import argparse
import json
import re
import shlex
from pathlib import Path

from rich.table import Table
from safetensors.numpy import save

from common import paths
from common.console import results
from common.data import load
from common.data.clients import Population
from common.data.images import SampleSet
from common.errors import UserError
from common.exits import ThresholdPolicy
from common.networks import cost_table
from common.onnx.export import Description, check_out, difference, make_graphs, prepare, write_export
from common.onnx.folder import CLASSIFIER, Exported, Student, describe
from common.onnx.quantize import in_int8
from common.storage.files import write_bytes
from common.storage.model_file import StoredModel, load_model
from strategies.callbacks.report.records import load_run
from strategies.configuration import read_config
from strategies.distree.model.stored import FILE as STUDENTS
from strategies.distree.model.stored import StoredStudent, load_student, load_students, student_file
from strategies.hetero_splitee.origin import CLIENT
from strategies.hetero_splitee.statistics import SERVER_HALF

FOLDER = "onnx"  # beside the model, unless --out names another
STUDENT = re.compile(r"student(-\d+)?\.safetensors")


def run(options: argparse.Namespace) -> int:
    """Write the folder and show it. Raises `UserError` before the folder is changed, if the model is not one."""
    if options.run_folder and not options.quantize:
        raise UserError(
            f"--run-folder {options.run_folder} is for --quantize: give --quantize int8 too, or leave it out"
        )
    out = options.out or (options.model if options.model.is_dir() else options.model.parent) / FOLDER
    if students := _students(options.model):
        if options.quantize:
            raise UserError("--quantize is for networks that answer by themselves: export students without it")
        folders = [out if len(students) == 1 else out / f"student-{stored.number}" for stored in students]
        for folder in folders:
            check_out(folder)
        for stored, folder in zip(students, folders, strict=True):
            show(folder, export_student(stored, folder))
        return 0
    stored_model = load_model(options.model)
    if stored_model.values.get(SERVER_HALF):
        raise UserError(
            f"--model {options.model} is the server's half of a split network: export the folder client-... of a "
            "device, and serve this half with `python -m server offload`"
        )
    check_out(out)
    samples = validation(options, stored_model) if options.quantize else None
    show(out, export_model(stored_model, out, samples))
    return 0


def validation(options: argparse.Namespace, stored: StoredModel) -> SampleSet:
    """Return the validation samples of the model's run; raises `UserError` if there are none, or others."""
    folder = options.run_folder or _run_folder(options.model)
    if folder is None:
        raise UserError(
            f"--quantize needs the run's validation samples, and no config.toml is beside {options.model}: give "
            "--run-folder, the folder of the run that the model comes from"
        )
    config = read_config(load_run(folder).config)
    source = load(config.data, paths.cache_root())
    if (source.input_shape, source.classes) != (stored.network.input_shape, stored.classes):
        raise UserError(f"the run {folder} has other samples or classes than the model: give the model's own run")
    samples = Population(config.data, config.clients.count, config.run.seed).server_validation()
    if not len(samples):
        raise UserError(f"the run {folder} has no validation samples: ranges of int8 cannot be measured")
    return samples


def export_model(stored: StoredModel, out: Path, samples: SampleSet | None = None) -> Exported:
    """Write a stored model's graphs, in int8 if there are validation samples."""
    network, policy = stored.network, stored.policy
    graphs = make_graphs(network, features=bool(stored.cut))
    apart, quantization = difference(network, graphs), None
    if samples is not None:
        costs = cost_table(network)
        small = in_int8(
            graphs, stored.normalizer(samples.inputs).numpy(), samples.labels.numpy(), policy,
            [costs.macs(index) for index in range(len(graphs))],
        )  # fmt: skip
        graphs, policy, quantization = small.graphs, small.policy, small.costs
    about = Description(
        "split" if stored.cut else "network", stored.run, stored.spec.name, stored.classes, stored.normalizer, policy,
        stored.cut, stored.values.get(CLIENT),
    )  # fmt: skip
    prepare(out)
    return write_export(out, network, graphs, about, largest_difference=apart, quantization=quantization)


def export_student(stored: StoredStudent, out: Path) -> Exported:
    """Write a student's graphs."""
    network = stored.network
    graphs = make_graphs(network, features=False)
    apart = difference(network, graphs)
    weight, bias = stored.own
    content = save({
        "block": stored.block.numpy(), "bias": stored.bias.numpy(), "own.weight": weight.numpy(),
        "own.bias": bias.numpy(),
    })  # fmt: skip
    student = Student(
        number=stored.number, length=network.num_classes, classifier=describe(CLASSIFIER, content),
        policies={name: json.loads(policy.to_json()) for name, policy in stored.policies.items()},
    )  # fmt: skip
    last = ThresholdPolicy((float("inf"),) * (len(graphs) - 1))
    about = Description("student", stored.run, stored.backbone, stored.classes, stored.normalizer, last)
    prepare(out)
    write_bytes(out / CLASSIFIER, content)
    return write_export(out, network, graphs, about, largest_difference=apart, student=student)


def show(folder: Path, exported: Exported) -> None:
    """Print a table of the segments and what to type next."""
    table = Table("graph")
    for name in ("KB", "MMACs to its exit"):
        table.add_column(name, justify="right")
    for segment in exported.segments:
        table.add_row(segment.file, f"{segment.bytes / 1e3:.1f}", f"{segment.macs / 1e6:.3f}")
    results.show(table, [*closing_lines(exported), _next_command(folder, exported)])


def closing_lines(exported: Exported) -> list[str]:
    """Return the lines below the table."""
    lines = [f"logits in fp32 differ from torch's by at most {exported.largest_difference:.1e}"]
    if found := exported.quantization:
        exits = ", ".join(
            f"exit {index}: {100 * before:.1f} -> {100 * after:.1f} %"
            for index, (before, after) in enumerate(zip(found.accuracy_fp32, found.accuracy, strict=True), start=1)
        )
        lines += [
            f"int8 on {found.samples} validation samples, accuracy {exits}",
            f"with the exit policy {100 * found.policy_accuracy_fp32:.1f} -> {100 * found.policy_accuracy:.1f} % at "
            f"{found.policy_macs_fp32 / 1e6:.3f} -> {found.policy_macs / 1e6:.3f} MMACs",
        ]
    return lines


def _next_command(folder: Path, exported: Exported) -> str:
    words = ["python", "-m", "client"]
    if exported.kind == "student":
        return shlex.join([*words, "serve-student", "--model", str(folder)])
    source = "--texts" if exported.vocabulary else "--images"
    split = ["--mode", "split", "--server", "HOST:PORT", "--token-file", "FILE"] if exported.kind == "split" else []
    return shlex.join([*words, "infer", *split, "--model", str(folder), source, "FOLDER"])


def _students(path: Path) -> list[StoredStudent]:
    """Return the students at a path: a device's file, or all that an aggregator's folder or run has; () for none."""
    if path.is_file() and path.name != STUDENTS:
        return [load_student(path)] if STUDENT.fullmatch(path.name) else []
    folder = next((p for p in (path, path / "final", path.parent) if (p / STUDENTS).is_file()), None)
    if folder is None:
        return []
    numbers = load_students(folder).students.spec.numbers
    return [load_student(student_file(folder, number)) for number in numbers]


def _run_folder(model: Path) -> Path | None:
    """Return the run's folder that a model lies in."""
    return next((p for p in (model, model.parent, model.parent.parent) if (p / "config.toml").is_file()), None)
