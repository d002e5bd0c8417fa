"""The options that name the devices serving students, `--student 1=HOST:PORT` and others, and connecting to them."""

import argparse
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from common.errors import UserError
from common.rpc.channels import connect
from common.rpc.secrets import read_certificate, read_token
from server.commands.computing import CODING, DEADLINE
from strategies.distree.model.stored import StoredStudents
from strategies.distree.serving.aggregator import Aggregator


def ask(stored: StoredStudents, options: argparse.Namespace, stack: ExitStack) -> Aggregator:
    """Return an aggregator connected to the devices that the options name; leaving the stack closes it.

    Sends no image yet. Raises `UserError` if the options do not fit each other or the students.
    """
    if not 0 < options.deadline < float("inf"):
        raise UserError(f"--deadline {options.deadline}: give seconds above 0")
    addresses = numbered(options.student, stored, "--student")
    certificates = numbered(options.certificate, stored, "--certificate")
    if unmatched := sorted(set(certificates) - set(addresses)):
        raise UserError(f"--certificate {unmatched[0]}=...: give --student {unmatched[0]}=HOST:PORT too, or remove it")
    if options.token_file is None:
        raise UserError("--student needs --token-file: give a copy of the devices' token file")
    token = read_token(options.token_file)
    pem = {number: read_certificate(Path(file)) for number, file in certificates.items()}
    channels = {
        number: stack.enter_context(connect(address, token, pem.get(number))) for number, address in addresses.items()
    }
    return stack.enter_context(Aggregator(stored, channels, options.deadline, options.coding))


def none_answered(missing: Mapping[int, str]) -> UserError:
    """Return the error for no answers from any device; `missing`: student -> reason."""
    reasons = "; ".join(f"student {number}: {reason}" for number, reason in sorted(missing.items()))
    return UserError(f"no device answered any image ({reasons}): check the devices, or give a longer --deadline")


def numbered(given: Sequence[str], stored: StoredStudents, option: str) -> Mapping[int, str]:
    """Return student -> value of options like `1=VALUE`.

    Raises `UserError` for an option of another form, of an unknown student, or of the same student as another option.
    """
    found: dict[int, str] = {}
    for text in given:
        number, _, value = text.partition("=")
        if not number.isdecimal() or int(number) not in stored.students.spec.numbers or not value:
            known = ", ".join(map(str, stored.students.spec.numbers))
            raise UserError(f"{option} {text}: write NUMBER=VALUE, with a student's NUMBER ({known})")
        if int(number) in found:
            raise UserError(
                f"{option} {text}: student {int(number)} already has {found[int(number)]}: give one of them"
            )
        found[int(number)] = value
    return found


def words(options: argparse.Namespace, stored: StoredStudents) -> list[str]:
    """Return the options as words of another command, with placeholders where none were given."""
    given = options.student or [f"{number}=HOST:PORT" for number in stored.students.spec.numbers]
    found = [word for text in given for word in ("--student", text)]
    found += ["--token-file", str(options.token_file or "FILE")]
    found += [word for text in options.certificate for word in ("--certificate", text)]
    found += ["--deadline", str(options.deadline)] if options.deadline != DEADLINE else []
    return found + (["--coding", options.coding] if options.coding != CODING else [])
