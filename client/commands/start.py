"""`python -m client start`: run a SuperNode, through which a server's runs train on this device.

It keeps trying while the server is away, and restarts the SuperNode when Flower gives up: after a crash the server
needs up to a minute until it accepts the same device again.
"""

import argparse
import json
import math
import shlex
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from client.commands.capacity import add_capacity, read_capacity
from client.commands.clock import check_clock
from client.warm import flower_shim
from common.console.verbs import Verbs
from common.data.image_folder import TEST, TRAIN, VALIDATION, own_files
from common.data.support import listed
from common.errors import UserError
from common.flower.processes import PROJECT, check_free, child, environment, flower_home, free_port, noted_signals, tied
from common.paths import check_writable
from common.rpc.channels import is_loopback, split_address, superlink
from common.rpc.credentials import DeviceFiles, device_files

NETWORK, SAMPLES, PIXELS = "resnet_slim", 1000, 32  # the example that is printed before a run is known
RETRY = 5.0  # seconds before the next start
LOOK = 0.1  # seconds between two checks for a signal meanwhile


def add_parser(verbs: Verbs) -> None:
    """Add this verb and its options."""
    parser = verbs.add_parser("start", description=__doc__)
    parser.add_argument("--superlink", required=True, metavar="HOST:PORT", help="address of the server or its proxy")
    parser.add_argument(
        "--client-id", "--partition", dest="client", type=int, required=True, metavar="N",
        help="number of this client in the run, from 0; without --data also its share of the run's data",
    )  # fmt: skip
    add_capacity(parser)
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="this device's own images, one folder per class")
    parser.add_argument(
        "--tls", action="store_true", help="encrypt; without --certificates trust the system's authorities"
    )
    parser.add_argument(
        "--certificates", type=Path, metavar="FOLDER", help="encrypt with this device's folder: ca.pem, node.key"
    )
    parser.add_argument("--insecure", action="store_true", help="allow no TLS off loopback, in a private network")
    parser.add_argument(
        "--state", type=Path, metavar="FOLDER", help="stored models and Flower's home (default: beside $FLWR_HOME)"
    )
    parser.add_argument(
        "--worker", type=float, metavar="MINUTES",
        help="how long the training process stays in memory without work; 0: not at all (default: 10)",
    )  # fmt: skip
    parser.add_argument(
        "--port", type=int, default=0, help="port for this device's own processes (default: a free one)"
    )
    parser.add_argument(
        "--patience",
        type=float,
        default=120.0,
        metavar="S",
        help="give up after S seconds of failing starts (default: %(default)s)",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Serve until SIGINT, SIGTERM or SIGHUP, which the SuperNode gets too. Raises `UserError`."""
    options.superlink = superlink(
        options.superlink, encrypted=bool(options.tls or options.certificates), remedy="--tls or --certificates"
    )
    host, port = split_address(options.superlink)
    _check_numbers(options)
    files = _security(options, host)
    if options.capacity != "auto":
        read_capacity(options.capacity)  # refuses what cannot be read
    home = flower_home(options.state)
    for folder in (home, home.parent / ".cache"):
        check_writable(folder, "set --state to a folder that this user can write")
    if options.data and not options.data.is_dir():
        raise UserError(f"--data {options.data} is not a folder: give one with a folder of images per class")
    for line in data_lines(options.data.absolute()) if options.data else ():
        print(line, flush=True)
    values: dict[str, object] = {"client-id": options.client}
    values |= {"data": str(options.data.absolute())} if options.data else {}
    values |= {"state": str(home.parent)} if options.state else {}
    values |= {} if options.worker is None else {"worker": options.worker}
    if encrypted := files is not None or options.tls:
        _check_server(host, port, files)
    check_clock(host.strip("[]"), port, _context(files) if encrypted else None)
    found = probe(options.capacity)
    values |= found["node"]
    print(f"capacity: {found['capacity']} ({found['source']})")
    for fit in found["networks"]:
        print(f"{fit['network']}, {SAMPLES} images per epoch (others: python -m client probe):")
        print(f"    depth {fit['depth']['part']} of {fit['tiers']}: {fit['depth']['reason']}")
        print(f"    split training: cut {fit['cut']['part']} of {fit['cuts']}: {fit['cut']['reason']}")
    security = _security_word(files, encrypted)
    print(f"client {options.client} at {options.superlink}: {security}; state in {home.parent}")
    print(_next_command(encrypted), flush=True)
    command = ["flower-supernode", "--superlink", options.superlink]
    command += ["--node-config", node_config(values), *_links(files, encrypted)]
    return _supervise(command, flower_shim.environment(environment(home), home / "bin"), home, options)


def data_lines(folder: Path) -> Iterator[str]:
    """Yield what a device's folder of images holds, and a warning for one that a run would not take as it is now.

    A device may start before its images are there, so these are no errors. Raises `UserError` for a folder that cannot
    be read, and for two class folders of one name.
    """
    found = own_files(folder)
    counts = [f"{name} {len(files)}" for name, files in found.files.items()]
    if counts:
        yield f"data: {len(counts)} class{'es' * (len(counts) > 1)} ({listed(counts)})"
    else:
        yield f"warning: --data {folder} holds no images yet: put them into {folder}/<class>/ before a run starts"
    if found.files.keys() and {name.lower() for name in found.files} <= {*TRAIN, *TEST, *VALIDATION}:
        yield f"warning: a run takes these folders as classes: put the folders of the classes into {folder} itself"
    yield from (f"note: {note}" for note in found.notes)


def probe(capacity: str) -> dict[str, Any]:
    """Return what `python -m client probe --json` prints; its process takes torch's memory with it when it ends.

    Raises `UserError` with its message if it fails.
    """
    command = [sys.executable, "-m", "client", "probe", "--json", "--capacity", capacity, "--network", NETWORK]
    command += ["--samples", str(SAMPLES), "--image-size", str(PIXELS)]
    done = subprocess.run(tied(command), cwd=PROJECT, capture_output=True, text=True, check=False)
    if done.returncode:
        problem = done.stderr.strip().rpartition("\n")[2].removeprefix("error: ")
        raise UserError(problem or f"`{shlex.join(command[1:])}` ended with code {done.returncode}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _next_command(encrypted: bool) -> str:
    authority = (
        "--root-certificates certificates/ca.pem " if encrypted else ""
    )  # where the server makes its own certificates
    numbers = "-c clients.count=N -c clients.per-round=N -c round.min-nodes=N"
    return f"next, on the server, for the N started devices:  python -m server submit {authority}{numbers}"


def _check_numbers(options: argparse.Namespace) -> None:
    """Raise `UserError` for numbers that Flower or its runs would reject or misread, and for a port that is taken."""
    if options.client < 0:
        raise UserError(f"--client-id {options.client}: give 0 or more, clients are counted from 0")
    if options.worker is not None and not 0 <= options.worker < math.inf:
        raise UserError(f"--worker {options.worker}: give minutes, 0 or more")
    if not options.patience >= 0:  # NaN is refused too
        raise UserError(f"--patience {options.patience}: give seconds, 0 or more")
    if not 0 <= options.port <= 65535:
        raise UserError(f"--port {options.port}: give 1 to 65535, or 0 for a free one")
    if options.port:
        check_free("127.0.0.1", options.port, "--port")


def node_config(values: Mapping[str, object]) -> str:
    """Return values for Flower's command line; raises `UserError` for characters that its quotes cannot carry."""
    for value in values.values():
        if any(sign in str(value) for sign in "\"'\\\n"):
            raise UserError(f"{value}: choose a path without quotes and backslashes, Flower cannot pass them on")
    return " ".join(f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in values.items())


def _security(options: argparse.Namespace, host: str) -> DeviceFiles | None:
    if options.certificates:
        return device_files(options.certificates.absolute())
    if not options.tls and not is_loopback(host) and not options.insecure:
        raise UserError(
            f"--superlink {host} is not loopback: give --certificates, or --tls if a public authority signed the "
            "server's certificate, or --insecure in a private network"
        )
    return None


def _links(files: DeviceFiles | None, encrypted: bool) -> Sequence[str]:
    if not encrypted:
        return ["--insecure"]
    if files is None:
        return []
    key = ["--auth-supernode-private-key", str(files.key)] if files.key else []
    return ["--root-certificates", str(files.authority), *key]


def _security_word(files: DeviceFiles | None, encrypted: bool) -> str:
    if files and files.key:
        return f"TLS, key {files.key}"
    return "TLS" if encrypted else "not encrypted"


def _context(files: DeviceFiles | None) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=files.authority if files else None)


def _check_server(host: str, port: int, files: DeviceFiles | None) -> None:
    """Raise `UserError` when the wrong server answers: Flower would retry for ever."""
    try:
        with socket.create_connection((host.strip("[]"), port), timeout=5) as plain:
            _context(files).wrap_socket(plain, server_hostname=host.strip("[]")).close()
    except ssl.SSLCertVerificationError as error:
        trusted = files.authority if files else "this system's authorities"
        raise UserError(
            f"{host}:{port}: its certificate does not verify against {trusted}: {error.verify_message}. Check the "
            "address and --certificates"
        ) from error
    except ssl.SSLError as error:
        raise UserError(
            f"{host}:{port} does not speak TLS: check the port, or leave out --tls and --certificates"
        ) from error
    except OSError:
        print(f"{host}:{port} does not answer yet; the device keeps trying")


def _supervise(command: Sequence[str], env: Mapping[str, str], home: Path, options: argparse.Namespace) -> int:
    failing: float | None = None
    with noted_signals() as signals:
        while True:
            begun = time.monotonic()
            # a free port each time: another process may have taken the last one meanwhile
            with child([*command, "--port", str(options.port or free_port())], env, home, signals) as node:
                code = node.wait()
                if node.stopped:
                    return code
            now = time.monotonic()
            if now - begun > options.patience:  # it worked before it ended
                failing = now
            elif failing is None:
                failing = begun
            if now - failing >= options.patience:
                again = shlex.join(["python", "-m", "server", "register", "--superlink", "HOST:PORT"])
                raise UserError(
                    f"the SuperNode ends again and again (see Flower's log above). Where {options.superlink} rejected "
                    f"this device, check its clock and that its key is registered: on the server run {again}"
                )
            print(f"the SuperNode ended; it starts again in {RETRY:.0f} s", flush=True)
            if _signalled_within(RETRY, signals):
                return 0  # to end on a signal is no failure


def _signalled_within(seconds: float, signals: list[int]) -> bool:
    for _ in range(round(seconds / LOOK)):
        if signals:
            break
        time.sleep(LOOK)  # a signal does not shorten it
    return bool(signals)
