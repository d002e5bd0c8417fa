"""`python -m client serve-student`: answer with a student's features, as one device of several (DistrEE)."""

import argparse
import math
import shlex
from collections.abc import Callable
from pathlib import Path

from client.runtimes.choice import check_threads, wanted
from common.errors import UserError
from common.rpc import standalone
from common.rpc.channels import Limits
from common.rpc.methods import STUDENTS
from strategies.distree.serving.service import Served, StudentService, message_bytes, own_policy

STUDENTS_FILE = "students.safetensors"  # the aggregator's, see `strategies/distree/model/stored.py`

CALLS = 16  # at a time; one computes, the others wait


def run(options: argparse.Namespace, made: Callable[[StudentService], None] = lambda service: None) -> int:
    """Serve until SIGINT or SIGTERM; `made` gets the service first. Raises `UserError` before it starts."""
    if options.batch < 1:
        raise UserError(f"--batch {options.batch}: give 1 or more")
    check_threads(options)
    if not 1 <= options.slowdown < math.inf:
        raise UserError(f"--slowdown {options.slowdown}: give 1 or more")
    student = open_student(options)
    policy, folder = own_policy(student, options.policy), options.model.parent
    reached = standalone.access(options, folder, "students.token")
    service = StudentService(student, policy, batch_size=options.batch, slowdown=options.slowdown)
    made(service)
    service.warm_up()
    limits = Limits(message_bytes(student, options.batch), CALLS)
    standalone.serve_until_stopped(
        service.register, STUDENTS, reached, limits,
        lambda address: _next_command(address, reached, student, folder),
    )  # fmt: skip
    return 0


def open_student(options: argparse.Namespace) -> Served:
    """Return the student of `--model`; raises `UserError` when there is none."""
    if wanted(options) == "onnx":
        from client.runtimes.with_onnx import OnnxStudent

        return OnnxStudent.open(options.model, options.threads)
    import torch

    from common.devices import keep_memory, pick_device
    from strategies.distree.model.stored import load_student
    from strategies.distree.serving.computed import TorchStudent

    stored = load_student(options.model)
    torch.set_num_threads(options.threads)
    keep_memory()
    return TorchStudent(stored, pick_device(options.device))


def _next_command(address: str, reached: standalone.Access, student: Served, folder: Path) -> str:
    """Return the student's address, and the command to type at the aggregator."""
    model = str(folder) if (folder / STUDENTS_FILE).is_file() else "FOLDER"
    words = ["python", "-m", "server", "infer", "--model", model, "--student", f"{student.number}={address}"]
    words += ["--token-file", str(reached.token_file)]
    if reached.certificate_file:
        words += ["--certificate", f"{student.number}={reached.certificate_file}"]
    return f"student {student.number} answers at {address}\n{shlex.join([*words, '--images', 'FOLDER'])}"
