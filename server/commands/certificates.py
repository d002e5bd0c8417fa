"""`python -m server certificates`: make an authority, the server's certificate and a key for every device.

Existing files stay, so devices can be added at any time; with --host the server's certificate is made anew. Copy each
device's folder to that device only, and keep `ca.key` private.
"""

import argparse
import shlex
from pathlib import Path

from common.console.verbs import Verbs
from common.errors import UserError
from common.rpc.credentials import make_credentials, public_keys

FOLDER = Path("certificates")


def add_parser(verbs: Verbs) -> None:
    """Add this verb and its options."""
    parser = verbs.add_parser("certificates", description=__doc__)
    parser.add_argument(
        "--folder", type=Path, default=FOLDER, help="of all certificates and keys (default: %(default)s)"
    )
    parser.add_argument(
        "--host", nargs="+", default=[], metavar="NAME", help="names and addresses by which devices reach the server"
    )
    parser.add_argument("--devices", type=int, default=0, metavar="N", help="make keys for device-0 to device-(N-1)")
    parser.add_argument(
        "--add-device", action="append", default=[], metavar="NAME", help="make a key for one more; may be repeated"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Make what is missing and print what to do with it. Raises `UserError`."""
    if options.devices < 0:
        raise UserError(f"--devices {options.devices}: give 0 or more")
    devices = [f"device-{number}" for number in range(options.devices)] + options.add_device
    try:
        made = make_credentials(options.folder, options.host, devices)
    except OSError as error:
        raise UserError(f"{error.filename} cannot be written: {error.strerror}") from error
    print("\n".join(made or ["nothing to make: all files exist already"]))
    folder = shlex.quote(str(options.folder))
    start = f"python -m server start --certificates {folder}"
    print(f"server:  {start + ' --require-node-keys' if public_keys(options.folder) else start}")
    if devices:
        print(f"if the server runs already:  python -m server register --certificates {folder} --superlink HOST:PORT")
        print(f"device:  copy {options.folder / 'devices' / devices[0]} to the device, then type there")
        print("         python -m client start --certificates THAT_FOLDER --superlink HOST:PORT --client-id N")
        print("         N is 0, 1, 2, ...: give every device its own number")
    return 0
