"""The folder of keys and certificates that encrypt a deployment's links, and the part of it for each device.

ca.key ca.pem            the authority; `ca.key` is needed for new servers only and may be kept elsewhere
server.key server.pem    the pair of the SuperLink and the proxy
devices/NAME/            copy it to that device only:
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

LOCAL = ("localhost", "127.0.0.1", "::1")  # Flower's own processes reach the SuperLink by these
OPTION = "--certificates"
ADVICE = "make it with `python -m server certificates`"


@dataclass(frozen=True)
class ServerFiles:
    """The files by which a server proves its identity; all of them exist."""

    authority: Path
    certificate: Path
    key: Path


@dataclass(frozen=True)
class DeviceFiles:
    """The files by which a device checks its server and proves its own identity; all of them exist."""

    authority: Path
    key: Path | None  # None: the device has no key


def make_credentials(folder: Path, hosts: Sequence[str], devices: Sequence[str]) -> list[str]:
    """Make the missing files in a folder, and return a line for each.

    An existing authority and existing keys of devices stay. The server's pair is made anew whenever `hosts`, the names
    and addresses by which devices reach it, are given. Raises `UserError`.
    """
    for name in devices:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}", name):
            raise UserError(f"device name {name!r} is not valid: write letters, digits, dots, dashes and underscores")
    for host in hosts:
        if not re.fullmatch(r"[A-Za-z0-9_.:*-]+", host):
            raise UserError(f"--host {host!r} is not valid: give a name or address alone, in DNS's letters (xn--...)")
    if not hosts and not (folder / "server.pem").exists():
        raise UserError("--host is missing: give the names and addresses by which devices reach the server")
    made: list[str] = []
    known = (folder / "ca.pem").exists()
    # no device would trust a new authority, and its key would replace one that the old authority may need
    left = next((name for name in ("ca.key", "server.pem", "devices") if (folder / name).exists()), None)
    if not known and left:
        raise UserError(f"{folder / 'ca.pem'} is missing beside {left}: restore it, or give a new --folder")
    if hosts:
        names = list(dict.fromkeys([*hosts, *LOCAL]))
        authority = _read_authority(folder) if known else new_authority()
        try:  # before any file is written: the old pair may be in use
            check_pair(authority)
            server = signed_by(authority, names)
        except ValueError as error:
            raise UserError(f"{folder / 'ca.key'} and ca.pem: {error}: restore the two of one authority") from error
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
    """Return a server's files; raises `UserError` when one is missing or other users can access the key."""
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
        read_private(folder / "ca.key", OPTION, "restore it, the server's certificate is signed with it").encode(),
        read_certificate(folder / "ca.pem"),
    )


def _make_device(folder: Path, device: Path) -> str:
    """Make the missing files of a device's folder, which an interrupted command may have left, and name them."""
    key, made = device / "node.key", ""
    with suppress(FileExistsError):
        make_private(key, new_node_key().private)
        made = "a new device key"
    try:
        public = public_node_key(read_private(key, OPTION, ADVICE).encode())
    except ValueError as error:
        raise UserError(f"{key} is not a device's key: delete {device} to get a new one") from error
    for name, content in {"node.pub": public, "ca.pem": read_certificate(folder / "ca.pem")}.items():
        if not (device / name).exists():
            (device / name).write_bytes(content)
            made = made or "its missing files"
    return made


def _write_pair(stem: Path, pair: Certificate) -> None:
    key = stem.with_suffix(".key")
    key.unlink(missing_ok=True)
    make_private(key, pair.key)
    stem.with_suffix(".pem").write_bytes(pair.certificate)


def _require_certificate(file: Path) -> None:
    if not file.exists():
        raise UserError(f"{OPTION}: {file} is missing: {ADVICE}")
    read_certificate(file)
