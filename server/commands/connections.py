"""Flower's list of SuperLinks: entries for its commands, and the devices' keys that a SuperLink has to know."""

import fcntl
import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path

from common.errors import UserError
from common.storage.files import write_text
from server.commands.launch import flwr

KNOWN = "already in use"  # how Flower says that it has a key


def connection(home: Path, superlink: str, authority: Path | None, env: Mapping[str, str]) -> str:
    """Return the name of a SuperLink at `host:port` in Flower's configuration, to which it is added if it is missing.

    An entry that was written here and names another authority is written anew.

    Args:
        home: Flower's home folder.
        superlink: its address.
        authority: the certificate authority that it is trusted by; None: its link is not encrypted.
        env: from `environment(home)`.

    Raises:
        UserError: the configuration has an entry of that name that a user has written, or cannot be read.
    """
    home.mkdir(parents=True, exist_ok=True)
    file = home / "config.toml"
    entry: dict[str, object] = {"address": superlink}
    entry |= {"root-certificates": str(authority.absolute())} if authority else {"insecure": True}
    name = re.sub(r"[^A-Za-z0-9]+", "-", superlink).strip("-") + ("-tls" if authority else "")
    with (home / "config.lock").open("w") as lock:
        # of two commands at once, the second reads what the first has added: an entry that comes twice is no TOML
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not file.exists():
            flwr(["config", "list"], env)  # writes Flower's own entries, which simulations need
        text = file.read_text()
        try:
            found = tomllib.loads(text).get("superlink", {}).get(name)
        except tomllib.TOMLDecodeError as error:
            raise UserError(f"{file} is no TOML: {error}") from error
        if found is None:
            write_text(file, text + _section(name, entry))
        elif found != entry:
            if (old := _section(name, found)) not in text:
                raise UserError(f"{file} has another [superlink.{name}]: delete it there, a new one is written then")
            write_text(file, text.replace(old, _section(name, entry)))
    return name


def _section(name: str, entry: Mapping[str, object]) -> str:
    lines = "".join(f"{key} = {json.dumps(value)}\n" for key, value in entry.items())
    return f"\n[superlink.{name}]\n{lines}"


def register_keys(keys: Mapping[str, Path], name: str, env: Mapping[str, str]) -> list[str]:
    """Tell a SuperLink the devices' public keys, and return the names of those it did not know; raises `UserError`."""
    new: list[str] = []
    for device, key in keys.items():
        answer = flwr(["supernode", "register", str(key.absolute()), name, "--name", device], env)
        if answer.get("success"):
            new.append(device)
        elif KNOWN not in (problem := str(answer.get("error-message", answer))):
            raise UserError(f"the SuperLink did not take {device}'s key: {problem}")
    return new
