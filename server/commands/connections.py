"""Connections to SuperLinks: their entries in Flower's configuration, and the registration of device keys."""

import argparse
import fcntl
import re
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path

from common.errors import UserError
from common.paths import check_writable
from common.storage.files import write_text
from common.storage.toml import toml_lines
from server.commands.deploy import flower_answer, flwr

REGISTRATION = Path(__file__).with_name("registration.py")
UNREGISTERED = "unregistered"  # Flower's status of a key that it had once


def add_superlink(parser: argparse.ArgumentParser) -> None:
    """Add the options that name a running SuperLink."""
    parser.add_argument(
        "--superlink", default="127.0.0.1:8000", metavar="HOST:PORT", help="the SuperLink (default: %(default)s)"
    )
    add_state(parser)


def add_state(parser: argparse.ArgumentParser) -> None:
    """Add the option that `flower_home` reads."""
    parser.add_argument(
        "--state", type=Path, metavar="FOLDER",
        help="folder of the database, Flower's home and the runs (default: where $FLWR_HOME is, else the project)",
    )  # fmt: skip


def connection(home: Path, superlink: str, authority: Path | None, env: Mapping[str, str]) -> str:
    """Return the name of a SuperLink's entry in Flower's configuration; adds the entry if it is missing.

    Replaces an entry that this function wrote for another authority.

    Args:
        home: Flower's home folder.
        superlink: the SuperLink's `host:port`.
        authority: certificate of the authority that signed the SuperLink's; None: the link is not encrypted.
        env: from `environment(home)`.

    Raises:
        UserError: the configuration cannot be read, or a user has written another entry of that name.
    """
    check_writable(home, "set FLWR_HOME, or --state, to a folder that this user can write")
    file = home / "config.toml"
    entry: dict[str, object] = {"address": superlink}
    entry |= {"root-certificates": str(authority.absolute())} if authority else {"insecure": True}
    name = re.sub(r"[^A-Za-z0-9]+", "-", superlink).strip("-") + ("-tls" if authority else "")
    with (home / "config.lock").open("w") as lock:
        # of two concurrent commands, the second reads what the first has added: TOML refuses an entry that comes twice
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not file.exists():
            flwr(["config", "list"], env)  # writes Flower's own entries, which simulations need
        text = file.read_text(encoding="utf-8")
        try:
            found = tomllib.loads(text).get("superlink", {}).get(name)
        except tomllib.TOMLDecodeError as error:
            raise UserError(f"{file} is not valid TOML ({error}): correct or delete it") from error
        if found is None:
            write_text(file, text + _section(name, entry))
        elif found != entry:
            if (old := _section(name, found)) not in text:
                raise UserError(f"{file} has another [superlink.{name}] entry: delete it and repeat the command")
            write_text(file, text.replace(old, _section(name, entry)))
    return name


def _section(name: str, entry: Mapping[str, object]) -> str:
    return f"\n[superlink.{name}]\n{toml_lines(entry)}"


def register_keys(keys: Mapping[str, Path], name: str, env: Mapping[str, str]) -> list[str]:
    """Register devices' public keys with a SuperLink; returns the devices whose keys are new.

    Prints a warning for keys that were unregistered. Raises `UserError` if the SuperLink does not take the others.
    """
    files = [word for device, key in keys.items() for word in (device, str(key.absolute()))]
    answer = flower_answer(REGISTRATION, [name, *files], env)
    if not answer.get("success"):
        problem = " ".join(str(answer.get("error-message", answer)).split())
        raise UserError(f"not all device keys were registered: {problem}")
    status = answer["status"]
    if gone := [device for device in keys if status[device] == UNREGISTERED]:
        print(
            f"warning: the keys of {', '.join(gone)} were unregistered, and Flower never takes such a key again: make "
            "new ones under new names with `python -m server certificates --add-device NAME`",
            file=sys.stderr,
        )
    return [device for device in keys if not status[device]]
