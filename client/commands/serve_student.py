"""`python -m client serve-student`: answer with a student's features, as one device of several (DistrEE)."""

import argparse
import math
import shlex
from collections.abc import Callable
from pathlib import Path

import torch

from common.devices import keep_memory, pick_device
from common.errors import UserError
from common.rpc import standalone
from common.rpc.channels import Limits
from common.rpc.methods import STUDENTS
from strategies.distree.model.stored import FILE, StoredStudent, load_student
from strategies.distree.serving.service import StudentService, message_bytes, own_policy

CALLS = 16  # at a time; one computes, the others wait


def run(options: argparse.Namespace, made: Callable[[StudentService], None] = lambda service: None) -> int:
    """Serve until SIGINT or SIGTERM; `made` gets the service first. Raises `UserError` before it starts."""
    for name in ("batch", "threads"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name} {getattr(options, name)}: give 1 or more")
    if not 1 <= options.slowdown < math.inf:
        raise UserError(f"--slowdown {options.slowdown}: give 1 or more")
    stored = load_student(options.model)
    policy = own_policy(stored, options.policy)
    torch.set_num_threads(options.threads)
    keep_memory()
    reached = standalone.access(options, options.model.parent, "students.token")
    service = StudentService(
        stored, policy, batch_size=options.batch, device=pick_device(options.device), slowdown=options.slowdown
    )
    made(service)
    service.warm_up()
    limits = Limits(message_bytes(stored.network, options.batch), CALLS)
    standalone.serve_until_stopped(
        service.register, STUDENTS, reached, limits,
        lambda address: _next_command(address, reached, stored, options.model.parent),
    )  # fmt: skip
    return 0


def _next_command(address: str, reached: standalone.Access, stored: StoredStudent, folder: Path) -> str:
    """Return the student's address, and the command to type at the aggregator."""
    model = str(folder) if (folder / FILE).is_file() else "FOLDER"
    words = ["python", "-m", "server", "infer", "--model", model, "--student", f"{stored.number}={address}"]
    words += ["--token-file", str(reached.token_file)]
    if reached.certificate_file:
        words += ["--certificate", f"{stored.number}={reached.certificate_file}"]
    return f"student {stored.number} answers at {address}\n{shlex.join([*words, '--images', 'FOLDER'])}"
