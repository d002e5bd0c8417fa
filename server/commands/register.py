"""`python -m server register`: register the keys of devices that were added after the SuperLink was started."""

import argparse
import shlex
from pathlib import Path

from common.console.verbs import Verbs
from common.errors import UserError
from common.flower.processes import environment, flower_home
from common.rpc.channels import superlink
from common.rpc.credentials import public_keys
from common.rpc.secrets import read_certificate
from server.commands.certificates import FOLDER
from server.commands.connections import add_superlink, connection, register_keys


def add_parser(verbs: Verbs) -> None:
    """Add this verb and its options."""
    parser = verbs.add_parser("register", description=__doc__)
    parser.add_argument(
        "--certificates", type=Path, default=FOLDER, metavar="FOLDER",
        help="made by `python -m server certificates` (default: %(default)s)",
    )  # fmt: skip
    add_superlink(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Register the keys in the folder that the SuperLink does not have yet. Raises `UserError`."""
    options.superlink = superlink(options.superlink, encrypted=True)
    home = flower_home(options.state)
    env = environment(home)
    keys = public_keys(options.certificates)
    if not keys:
        make = f"python -m server certificates --folder {shlex.quote(str(options.certificates))} --add-device NAME"
        raise UserError(f"{options.certificates / 'devices'} holds no device key: make one with `{make}`")
    authority = (options.certificates / "ca.pem").absolute()
    read_certificate(authority)
    new = register_keys(keys, connection(home, options.superlink, authority, env), env)
    print(f"registered: {', '.join(new)}" if new else f"none of the {len(keys)} keys is new")
    return 0
