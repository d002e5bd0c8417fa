"""The folder of everything that makes a deployment's links secret, and what a device gets of it.

ca.key ca.pem            the authority; `ca.key` is needed for new servers only and may be kept elsewhere
server.key server.pem    the SuperLink's, and the proxy's
devices/NAME/            copy it to that device, and to nobody else:
    ca.pem               the authority's certificate, the only one that the device trusts
    node.key node.pub    the device's own pair; `node.pub` is registered with the SuperLink
"""

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from common.errors import UserError
from common.rpc.certificates import Certificate, check_pair, new_authority, new_node_key, public_node_key, signed_by
from common.rpc.secrets import make_private, read_certificate, read_private

LOCAL = ("localhost", "127.0.0.1", "::1")  # Flower's own processes beside the SuperLink reach it by these
OPTION = "--certificates"
ADVICE = "make it with `python -m server certificates`"


@dataclass(frozen=True)
class ServerFiles:
    """What a server needs to prove who it is; all of them exist."""

    authority: Path
    certificate: Path
    key: Path


@dataclass(frozen=True)
class DeviceFiles:
    """What a device needs to know its server, and to be known; all of them exist."""

    authority: Path
    key: Path | None


def make_credentials(folder: Path, hosts: Sequence[str], devices: Sequence[str]) -> list[str]:
    """Make what is missing in a folder, and say what was made.

    An authority and the keys of devices stay once they are there; the server's pair is made anew whenever `hosts`, the
    names and addresses by which devices reach it, are given. Raises `UserError`.
    """
    for name in devices:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}", name):
            raise UserError(f"device name {name!r}: write letters, digits, dots, dashes and underscores")
    for host in hosts:
        if not re.fullmatch(r"[A-Za-z0-9_.:*-]+", host):
            raise UserError(f"--host {host!r}: give a name or address alone, other letters as DNS has them (xn--...)")
    if not hosts and not (folder / "server.pem").exists():
        raise UserError("--host is missing: give the names and addresses by which devices reach the server")
    made: list[str] = []
    known = (folder / "ca.pem").exists()
    # a new one would be trusted by no device, and take the place of a key that the old one may need
    left = next((name for name in ("ca.key", "server.pem", "devices") if (folder / name).exists()), None)
    if not known and left:
        raise UserError(f"{folder / 'ca.pem'} is missing beside {left}: bring it back, or name a new --folder")
    if hosts:
        names = list(dict.fromkeys([*hosts, *LOCAL]))
        authority = _read_authority(folder) if known else new_authority()
        try:  # before anything is written: the old pair may be at work
            check_pair(authority)
            server = signed_by(authority, names)
        except ValueError as error:
            advice = "bring the two back that were made together"
            raise UserError(f"{folder / 'ca.key'} and ca.pem: {error}: {advice}") from error
        if not known:
            _write_pair(folder / "ca", authority)
            made.append(f"{folder / 'ca.pem'}: a new authority")
        _write_pair(folder / "server", server)
        made.append(f"{folder / 'server.pem'}: for {', '.join(names)}")
    for name in devices:
        if new := _make_device(folder, folder / "devices" / name):
            made.append(f"{folder / 'devices' / name}: {new}")
    return made


def server_files(folder: Path) -> ServerFiles:
    """Return a server's files; raises `UserError` when one is missing or others may read the key."""
    files = ServerFiles(folder / "ca.pem", folder / "server.pem", folder / "server.key")
    for file in (files.authority, files.certificate):
        _require_certificate(file)
    read_private(files.key, OPTION, ADVICE)
    return files


def device_files(folder: Path) -> DeviceFiles:
    """Return a device's files, without a key if it has none; raises what `server_files` does."""
    _require_certificate(folder / "ca.pem")
    key = folder / "node.key"
    if not key.exists():
        return DeviceFiles(folder / "ca.pem", None)
    read_private(key, OPTION, ADVICE)
    return DeviceFiles(folder / "ca.pem", key)


def public_keys(folder: Path) -> dict[str, Path]:
    """Return every device's public key by the device's name."""
    return {file.parent.name: file for file in sorted(folder.glob("devices/*/node.pub"))}


def _read_authority(folder: Path) -> Certificate:
    return Certificate(
        read_private(folder / "ca.key", OPTION, "the authority's key signs servers: bring it back").encode(),
        read_certificate(folder / "ca.pem"),
    )


def _make_device(folder: Path, device: Path) -> str:
    """Make what a device's folder lacks, and say what that was: a command may have been cut short before."""
    key, made = device / "node.key", ""
    with suppress(FileExistsError):
        make_private(key, new_node_key().private)
        made = "a new device's key"
    try:
        public = public_node_key(read_private(key, OPTION, ADVICE).encode())
    except ValueError as error:
        raise UserError(f"{key} is no device's key: delete {device} to have a new one made") from error
    for name, content in {"node.pub": public, "ca.pem": read_certificate(folder / "ca.pem")}.items():
        if not (device / name).exists():
            (device / name).write_bytes(content)
            made = made or "what was missing"
    return made


def _write_pair(stem: Path, pair: Certificate) -> None:
    key = stem.with_suffix(".key")
    key.unlink(missing_ok=True)
    make_private(key, pair.key)
    stem.with_suffix(".pem").write_bytes(pair.certificate)


def _require_certificate(file: Path) -> None:
    if not file.exists():
        raise UserError(f"{OPTION}: there is no {file}: {ADVICE}")
    read_certificate(file)
