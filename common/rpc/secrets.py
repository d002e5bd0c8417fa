"""Tokens and certificates in files, for a service that no run announces. Only the owner can read the secret ones."""

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import NamedTemporaryFile

from common.errors import UserError
from common.rpc.certificates import Certificate, check_pair, outdated, self_signed
from common.rpc.channels import new_token
from common.storage.files import write_text

OPTION = "--certificate-dir"
KEY, CERTIFICATE = "key.pem", "certificate.pem"
DAYS = 365  # validity of a certificate made here
PATIENCE = 2.0  # seconds within which a certificate must follow its key


def read_token(file: Path) -> str:
    """Return the token in a file; raises `UserError` when it holds none, or other users can access it."""
    token = read_private(file, "--token-file", "give the file that the service has written").strip()
    if not (token.isascii() and token.isprintable() and token) or " " in token:
        raise UserError(f"{file} holds no token: write one line of letters, digits and signs without spaces")
    return token


def read_or_make_token(file: Path) -> str:
    """Return the token in a file, which is made if it is missing; raises what `read_token` does."""
    with suppress(FileExistsError):
        make_private(file, new_token().encode() + b"\n")
    return read_token(file)


def read_or_make_certificate(folder: Path, hosts: Sequence[str]) -> Certificate:
    """Return the pair in a folder's `key.pem` and `certificate.pem`, which is made for `hosts` if the key is missing.

    The pair survives restarts, so that devices need the certificate once; the user may put another pair there instead.
    Raises `UserError` when a file is missing or cannot be written, other users can access the key, the two files are
    not a pair, or a pair that was made here has expired or is for other hosts.
    """
    made = self_signed(hosts, DAYS)
    try:
        make_private(folder / KEY, made.key)
    except FileExistsError:
        _wait_for(folder / CERTIFICATE)
    else:
        write_text(folder / CERTIFICATE, made.certificate.decode())
    advice = f"delete {KEY} and {CERTIFICATE} there to get new ones"
    key = read_private(folder / KEY, OPTION, advice)
    if not (folder / CERTIFICATE).exists():
        raise UserError(f"{OPTION}: {folder} has a {KEY} without its {CERTIFICATE}: restore it, or {advice}")
    pair = Certificate(key.encode(), read_certificate(folder / CERTIFICATE))
    try:
        check_pair(pair)
    except ValueError as error:
        raise UserError(
            f"{OPTION}: {folder / KEY} and {CERTIFICATE}: {error}: restore the right ones, or {advice}"
        ) from error
    if problem := outdated(pair.certificate, hosts):
        copy = f"then copy the new {CERTIFICATE} to the callers"
        raise UserError(f"{OPTION}: {folder / CERTIFICATE} {problem}: {advice}, {copy}")
    return pair


def read_certificate(file: Path) -> bytes:
    """Return a PEM file's content; raises `UserError` when it cannot be read or is not a certificate."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error
    if b"BEGIN CERTIFICATE" not in content:
        raise UserError(f"{file} is not a certificate in PEM form: give the server's {CERTIFICATE}")
    return content


def make_private(file: Path, content: bytes) -> None:
    """Create a file that only its owner can read; raises `FileExistsError`, and `UserError` if it cannot be created.

    It appears with all its content: of several processes that create it at once, the first one's file is used by all.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the folder {file.parent} cannot be created: {error.strerror}") from error
    try:
        with NamedTemporaryFile(dir=file.parent, prefix=f".{file.name}.") as temporary:  # mode 600
            temporary.write(content)
            temporary.flush()
            os.link(temporary.name, file)
    except FileExistsError:
        raise
    except OSError as error:
        raise UserError(f"{file} cannot be written: {error.strerror}") from error


def _wait_for(certificate: Path) -> None:
    """Wait until the process that has just made the key has written its certificate."""
    end = time.monotonic() + PATIENCE
    while not certificate.exists() and time.monotonic() < end:
        time.sleep(0.01)


def read_private(file: Path, option: str, advice: str) -> str:
    """Return a file's text; raises `UserError`, naming the option, when other users can access it."""
    try:
        others = file.stat().st_mode & 0o077
        text = file.read_text(errors="replace")
    except OSError as error:
        raise UserError(f"{option}: {file} cannot be read ({error.strerror}): {advice}") from error
    if others:
        raise UserError(f"{option}: other users can access {file}: run chmod 600 {file}")
    return text
