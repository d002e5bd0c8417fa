"""`python -m server submit`: run the app on the devices of a SuperLink, follow the run, and exit with its status.

Type it on the SuperLink's machine: then the SuperLink's Control paths need not be reachable from elsewhere.
"""

import argparse
import sys
from pathlib import Path

from common.console.verbs import Verbs
from common.errors import UserError
from common.flower.processes import environment, flower_home
from common.rpc.channels import is_loopback, split_address, superlink
from common.rpc.secrets import read_certificate
from common.storage.run_files import refuse_taken
from server.commands import left_out
from server.commands.connections import add_superlink, connection
from server.commands.deploy import deploy
from server.commands.launch import run_folder
from server.commands.overrides import add_run, read_run


def add_parser(verbs: Verbs) -> None:
    """Add this verb and its options."""
    parser = verbs.add_parser("submit", description=__doc__)
    add_run(parser)
    parser.add_argument(
        "--root-certificates", type=Path, metavar="FILE", help="encrypt; the authority's certificate, ca.pem"
    )
    parser.add_argument(
        "--insecure", action="store_true", help="allow an unencrypted SuperLink off loopback: in a private network"
    )
    add_superlink(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Return 0 only if the run completed. Raises `UserError`."""
    from server.commands.check import check_run  # imports pydantic, which `--help` does not need

    options.superlink = superlink(options.superlink, encrypted=bool(options.root_certificates))
    host, _ = split_address(options.superlink)
    if options.root_certificates:
        read_certificate(options.root_certificates)
    elif not is_loopback(host) and not options.insecure:
        raise UserError(
            f"--superlink {options.superlink} is not loopback: add --root-certificates, or --insecure in a private "
            "network"
        )
    overrides = read_run(options)
    home = flower_home(options.state)
    check_run(overrides, home.parent / "runs", here=False)
    if "run.resume" not in overrides:
        refuse_taken(run_folder(overrides, home.parent / "runs"))  # otherwise that run's progress would be shown
    env = environment(home)
    name = connection(home, options.superlink, options.root_certificates, env)
    outcome = deploy(overrides, home.parent / "runs", env, name)
    for line in left_out.summary(outcome.folder):
        print(line)
    if not outcome.completed:
        print(f"error: {outcome.failure}", file=sys.stderr)
        return 1
    where = outcome.folder if outcome.folder.exists() else f"runs/{outcome.folder.name} on the SuperLink's machine"
    print(f"completed: {where}")
    return 0
