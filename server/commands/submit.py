"""`python -m server submit`: run the app on the devices of a SuperLink, follow it, and exit as it ended.

Where the SuperLink runs, so that its Control paths need not be reachable from elsewhere. `python -m server register`
tells it the keys of devices that were added since it started.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import UserError
from common.flower.processes import environment, flower_home
from common.rpc.channels import is_loopback, split_address
from common.rpc.credentials import public_keys
from common.rpc.secrets import read_certificate
from server.commands.certificates import FOLDER
from server.commands.connections import connection, register_keys
from server.commands.launch import deploy
from server.commands.overrides import add_run, read_run
from server.commands.start import add_state

if TYPE_CHECKING:
    Verbs = argparse._SubParsersAction[argparse.ArgumentParser]


def add_parsers(verbs: "Verbs") -> None:
    """Add the two verbs and their options."""
    submit = verbs.add_parser("submit", help="run the app on a SuperLink's devices", description=__doc__)
    add_run(submit)
    submit.add_argument("--root-certificates", type=Path, metavar="FILE", help="the authority's ca.pem: encrypt")
    submit.add_argument("--insecure", action="store_true", help="off loopback without TLS: in a private network")
    submit.set_defaults(run=run_submit)
    register = verbs.add_parser("register", help="tell a SuperLink the keys of new devices", description=__doc__)
    register.add_argument("--certificates", type=Path, default=FOLDER, help="(default: %(default)s)")
    register.set_defaults(run=run_register)
    for verb in (submit, register):
        verb.add_argument("--superlink", default="127.0.0.1:8000", help="its HOST:PORT (default: %(default)s)")
        add_state(verb)


def run_submit(options: argparse.Namespace) -> int:
    """Run and follow; returns 0 only if the run completed. Raises `UserError`."""
    host, _ = split_address(options.superlink)
    if options.root_certificates:
        read_certificate(options.root_certificates)
    elif not is_loopback(host) and not options.insecure:
        raise UserError(
            f"{host} is not loopback: give --root-certificates, or --insecure in a network that is your own"
        )
    overrides = read_run(options)
    home = flower_home(options.state)
    env = environment(home)
    name = connection(home, options.superlink, options.root_certificates, env)
    outcome = deploy(overrides, home.parent / "runs", env, name)
    if not outcome.completed:
        print(f"error: {outcome.folder.name} ended as {outcome.status}: {outcome.details}", file=sys.stderr)
        return 1
    where = outcome.folder if outcome.folder.exists() else f"runs/{outcome.folder.name} on the SuperLink's machine"
    print(f"completed: {where}")
    return 0


def run_register(options: argparse.Namespace) -> int:
    """Register all devices of a folder that are not known yet. Raises `UserError`."""
    home = flower_home(options.state)
    env = environment(home)
    keys = public_keys(options.certificates)
    if not keys:
        raise UserError(f"there is no device's key in {options.certificates / 'devices'}: add one with --add-device")
    authority = (options.certificates / "ca.pem").absolute()
    read_certificate(authority)
    new = register_keys(keys, connection(home, options.superlink, authority, env), env)
    print(f"new: {', '.join(new)}" if new else f"all {len(keys)} keys were known")
    return 0
