"""`python -m server start`: run a SuperLink, which devices join and runs are submitted to.

Devices reach its Fleet paths and users its Control paths at one address, and Flower asks users for no password: whoever
reaches the address can submit code. So it listens on loopback; give devices elsewhere the proxy (docker/nginx.conf).
"""

import argparse
import shlex
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import UserError
from common.flower.processes import child, environment, flower_home, wait_for_port
from common.rpc.channels import is_loopback, split_address
from common.rpc.credentials import ServerFiles, public_keys, server_files
from server.commands.certificates import FOLDER
from server.commands.connections import connection, register_keys

if TYPE_CHECKING:
    Verbs = argparse._SubParsersAction[argparse.ArgumentParser]

ANY = {"0.0.0.0": "127.0.0.1", "[::]": "::1"}  # every interface -> how to reach it from here


def add_parser(verbs: "Verbs") -> None:
    """Add this verb and its options."""
    parser = verbs.add_parser("start", help="run a SuperLink for devices on other machines", description=__doc__)
    parser.add_argument("--address", default="127.0.0.1:8000", help="HOST:PORT to listen at (default: %(default)s)")
    add_state(parser)
    parser.add_argument("--tls", action="store_true", help=f"encrypt, with the certificates in {FOLDER}")
    parser.add_argument(
        "--certificates", type=Path, metavar="FOLDER", help="encrypt, with these of `python -m server certificates`"
    )
    parser.add_argument("--require-node-keys", action="store_true", help="refuse devices without a registered key")
    parser.add_argument("--insecure", action="store_true", help="listen off loopback without TLS: in a private network")
    parser.set_defaults(run=run)


def add_state(parser: argparse.ArgumentParser) -> None:
    """Add the option that `flower_home` reads."""
    parser.add_argument(
        "--state", type=Path, metavar="FOLDER",
        help="for the database, Flower's home and runs (default: that of $FLWR_HOME, else the project's folder)",
    )  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """Serve until SIGINT, SIGTERM or SIGHUP, which are passed on. Raises `UserError` before anything starts."""
    host, port = split_address(options.address)
    files = _security(options, host)
    _check_free(host, port)
    home = flower_home(options.state)
    home.mkdir(parents=True, exist_ok=True)
    env = environment(home)
    with child(_command(options, host, port, home, files), env, home) as superlink:
        if not wait_for_port(ANY.get(host, host.strip("[]")), port, superlink.process):
            if superlink.stopped:
                return superlink.wait()
            raise UserError(f"the SuperLink does not listen at {options.address}: its own lines above say why")
        if files:
            folder = (options.certificates or FOLDER).absolute()
            _register(folder, home, f"{ANY.get(host, host)}:{port}", files, env)
        print(_next_commands(options, host, port, home.parent, files), flush=True)
        return superlink.wait()


def _check_free(host: str, port: int) -> None:
    """Raise `UserError` if nobody can listen there: another's answer would be taken for that of this SuperLink."""
    name = host.strip("[]")
    try:
        with socket.create_server((name, port), family=socket.AF_INET6 if ":" in name else socket.AF_INET):
            pass
    except OSError as error:
        raise UserError(f"cannot listen at {host}:{port}: {error.strerror or error}") from error


def _security(options: argparse.Namespace, host: str) -> ServerFiles | None:
    if options.tls or options.certificates:
        if options.insecure:
            raise UserError("--insecure says without TLS: leave it or --tls and --certificates out")
        return server_files((options.certificates or FOLDER).absolute())
    if options.require_node_keys:
        raise UserError("--require-node-keys needs --tls: over a plain link keys prove nothing")
    if not is_loopback(host) and not options.insecure:
        raise UserError(f"{host} is not loopback: encrypt with --tls, or say --insecure in a network of your own")
    return None


def _command(options: argparse.Namespace, host: str, port: int, home: Path, files: ServerFiles | None) -> Sequence[str]:
    command = ["flower-superlink", "--host", host.strip("[]"), "--port", str(port)]
    command += ["--database", str(home / "superlink.db")]
    if files is None:
        command.append("--insecure")
    else:
        command += ["--ssl-ca-certfile", str(files.authority), "--ssl-certfile", str(files.certificate)]
        command += ["--ssl-keyfile", str(files.key)]
    return command + (["--enable-supernode-auth"] if options.require_node_keys else [])


def _register(folder: Path, home: Path, superlink: str, files: ServerFiles, env: Mapping[str, str]) -> None:
    # A device with a key is never taken in before the key is known, whether or not keys are required.
    if keys := public_keys(folder):
        new = register_keys(keys, connection(home, superlink, files.authority, env), env)
        print(f"keys: {len(keys)} in {folder / 'devices'}" + (f", new: {', '.join(new)}" if new else ", all known"))


def _next_commands(options: argparse.Namespace, host: str, port: int, state: Path, files: ServerFiles | None) -> str:
    reached = f"{socket.gethostname() if host in ANY else host}:{port}"
    device, submit = ["--superlink", reached], ["--superlink", f"{ANY.get(host, host)}:{port}"]
    if files:
        device += ["--certificates", "DEVICE_FOLDER"]
        submit += ["--root-certificates", str(files.authority)]
    elif options.insecure:
        device.append("--insecure")
        submit += [] if host in ANY or is_loopback(host) else ["--insecure"]
    if options.state:
        submit += ["--state", str(state)]
    warning = (
        "" if is_loopback(host) else "whoever reaches this address can submit code: give devices the proxy instead\n"
    )
    security = "TLS, devices need keys" if options.require_node_keys else "TLS" if files else "not encrypted"
    numbers = "-c clients.count=2 -c clients.per-round=2 -c round.min-nodes=2"
    return "\n".join((
        f"{warning}SuperLink at {options.address}: {security}; runs in {state / 'runs'}",
        "next, on the devices, each with a number of its own:",
        f"    python -m client start {shlex.join(device)} --client-id 0",
        f"    python -m client start {shlex.join(device)} --client-id 1",
        f"then, here:  python -m server submit {shlex.join(submit)} {numbers}",
    ))  # fmt: skip
