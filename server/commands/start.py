"""`python -m server start`: run a SuperLink, which devices join and runs are submitted to.

Devices use its Fleet paths and users its Control paths at one address, and Flower asks users for no password: any
machine that reaches the address can submit code. So it listens on loopback by default; devices elsewhere reach it
through the proxy (docker/nginx.conf).
"""

import argparse
import shlex
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

from common.console.verbs import Verbs
from common.errors import UserError
from common.flower.processes import check_free, child, environment, flower_home, wait_for_port
from common.paths import check_writable
from common.rpc.channels import is_loopback, split_address
from common.rpc.credentials import ServerFiles, public_keys, server_files
from server.commands.certificates import FOLDER
from server.commands.connections import add_state, connection, register_keys

ANY = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}  # address of all interfaces -> its address on this machine


def add_parser(verbs: Verbs) -> None:
    """Add this verb and its options."""
    parser = verbs.add_parser("start", description=__doc__)
    parser.add_argument("--address", default="127.0.0.1:8000", help="HOST:PORT to listen at (default: %(default)s)")
    add_state(parser)
    parser.add_argument("--tls", action="store_true", help=f"encrypt with the certificates in {FOLDER}")
    parser.add_argument(
        "--certificates", type=Path, metavar="FOLDER", help="encrypt with those made by `python -m server certificates`"
    )
    parser.add_argument("--require-node-keys", action="store_true", help="refuse devices without a registered key")
    parser.add_argument(
        "--insecure", action="store_true", help="allow an address off loopback without TLS: in a private network"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the SuperLink until SIGINT, SIGTERM or SIGHUP, and return its exit code. Raises `UserError`."""
    host, port = split_address(options.address)
    files = _security(options, host)
    check_free(host, port, "--address")  # `wait_for_port` would take another process for this SuperLink
    home = flower_home(options.state)
    check_writable(home, "set FLWR_HOME, or --state, to a folder that this user can write")
    env = environment(home)
    with child(_command(options, host, port, home, files), env, home) as superlink:
        if not wait_for_port(ANY.get(host, host).strip("[]"), port, superlink.process):
            if superlink.stopped:
                return superlink.wait()
            raise UserError(f"the SuperLink does not listen at {options.address}: see its log above")
        if files:
            folder = (options.certificates or FOLDER).absolute()
            _register(folder, home, f"{ANY.get(host, host)}:{port}", files, env)
        print(_next_commands(options, host, port, home.parent, files), flush=True)
        return superlink.wait()


def _security(options: argparse.Namespace, host: str) -> ServerFiles | None:
    if options.tls or options.certificates:
        if options.insecure:
            raise UserError("--insecure contradicts --tls and --certificates: remove it, or remove these")
        return server_files((options.certificates or FOLDER).absolute())
    if options.require_node_keys:
        raise UserError("--require-node-keys needs --tls or --certificates: on an unencrypted link keys prove nothing")
    if not is_loopback(host) and not options.insecure:
        raise UserError(f"--address {options.address} is not loopback: add --tls, or --insecure in a private network")
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
    # The SuperLink refuses a device that shows an unregistered key, whether or not keys are required.
    if keys := public_keys(folder):
        new = register_keys(keys, connection(home, superlink, files.authority, env), env)
        registered = f"registered now: {', '.join(new)}" if new else "none of them new"
        print(f"{len(keys)} device keys in {folder / 'devices'}, {registered}")


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
    warning = "warning: any machine that reaches this address can submit code: give devices the proxy's address\n"
    if is_loopback(host):
        warning = ""
    security = "TLS, devices need registered keys" if options.require_node_keys else "TLS" if files else "not encrypted"
    numbers = "-c clients.count=2 -c clients.per-round=2 -c round.min-nodes=2"
    return "\n".join((
        f"{warning}the SuperLink listens at {options.address}: {security}; runs are in {state / 'runs'}",
        "next, on the devices, each with its own --client-id:",
        f"    python -m client start {shlex.join(device)} --client-id 0",
        f"    python -m client start {shlex.join(device)} --client-id 1",
        f"then, on this machine:  python -m server submit {shlex.join(submit)} {numbers}",
    ))  # fmt: skip
