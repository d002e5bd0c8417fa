"""`python -m server offload`: serve a finished split training run's layers to its devices.

Devices ask with `python -m client infer --mode split`. No run is live then, so both sides share a token in a file: copy
it to every device, and off loopback the certificate too. With the token, gRPC's health service answers here as well.
"""

import argparse
import shlex
import signal
import tomllib
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from common.bundle import FILE, Bundle, load_bundle
from common.devices import pick_device
from common.errors import UserError
from common.paths import store_root
from common.rpc.channels import Limits, is_loopback, serve
from common.rpc.methods import SERVICE
from common.rpc.secrets import CERTIFICATE, read_or_make_certificate, read_or_make_token
from strategies.hetero_splitee.offload import Suffixes
from strategies.hetero_splitee.service import Expected, SplitService

if TYPE_CHECKING:
    Verbs = argparse._SubParsersAction[argparse.ArgumentParser]

CALLS = 64  # at a time; one is computed, the others wait


def add_parser(verbs: "Verbs") -> None:
    """Add this verb and its options."""
    parser = verbs.add_parser("offload", help="answer devices that infer with a split network", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="a finished split training run's folder")
    parser.add_argument("--address", default="127.0.0.1:0", help="HOST:PORT to listen at, port 0: a free one")
    parser.add_argument("--name", help="name or address by which devices reach HOST, where that differs")
    parser.add_argument("--token-file", type=Path, metavar="FILE", help="made if missing (default: the model's folder)")
    parser.add_argument("--tls", action="store_true", help="encrypt on loopback too; everywhere else always")
    parser.add_argument(
        "--certificate-dir", type=Path, metavar="FOLDER",
        help=f"of key.pem and {CERTIFICATE}, made if missing (default: the model's folder)",
    )  # fmt: skip
    parser.add_argument("--batch", type=int, default=64, help="images that a call may bring (default: %(default)s)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Serve until SIGINT or SIGTERM. Raises `UserError` before anything starts."""
    if options.batch < 1:
        raise UserError(f"--batch {options.batch}: give 1 or more")
    bundle = load_server(options.model)
    suffixes = Suffixes(bundle.network, pick_device(options.device))
    folder = options.model if options.model.is_dir() else options.model.parent
    token_file = options.token_file or folder / "offload.token"
    token = read_or_make_token(token_file)
    host, name, certificate_folder = options.address.rpartition(":")[0], _name(options), None
    certificate = None
    if options.tls or not is_loopback(host):
        certificate_folder = options.certificate_dir or folder
        certificate = read_or_make_certificate(certificate_folder, [name.strip("[]")])
    expected = Expected(bundle.run, suffixes.shapes, bundle.network.num_classes, options.batch)
    service, probe = SplitService(expected, suffixes.logits, offloads=CALLS), health.HealthServicer()
    probe.set(SERVICE, health_pb2.HealthCheckResponse.SERVING)

    def register(server: grpc.Server) -> None:
        service.register(server)
        health_pb2_grpc.add_HealthServicer_to_server(probe, server)

    stopped = Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    limits = Limits(suffixes.message_bytes(options.batch), CALLS)
    with serve(register, options.address, token, certificate, limits) as running:
        device = _a_device(options.model, bundle.run)
        print(_next_command(f"{name}:{running.port}", token_file, certificate_folder, device), flush=True)
        stopped.wait()
        probe.enter_graceful_shutdown()
    return 0


def load_server(path: Path) -> Bundle:
    """Return a split training run's finished network; raises `UserError` when this is another model."""
    bundle = load_bundle(path)
    if bundle.cut:
        raise UserError(f"{path} is a device's part: give --model the run's folder, it holds the server's layers")
    if not bundle.half:
        raise UserError(f"{path} is no split training run (run.strategy hetero_splitee): no device has a cut of it")
    return bundle


def _name(options: argparse.Namespace) -> str:
    """Return what devices call the server."""
    host = str(options.address.rpartition(":")[0])
    if not options.name and host.strip("[]") in ("0.0.0.0", "::"):
        raise UserError(f"--address {options.address} is every interface: say by which --name devices reach it")
    return str(options.name or host)


def _next_command(address: str, token_file: Path, certificate_folder: Path | None, device: Path) -> str:
    """Return what to type on a device."""
    words = ["python", "-m", "client", "infer", "--mode", "split", "--server", address, "--token-file", str(token_file)]
    if certificate_folder:
        words += ["--certificate", str(certificate_folder / CERTIFICATE)]
    return shlex.join([*words, "--model", str(device), "--images", "FOLDER"])


def _a_device(model: Path, run: str) -> Path:
    """Return the folder of a device that has stored its part on this machine, else what stands for one."""
    try:
        stored = tomllib.loads((model / "config.toml").read_text())["clients"]["store"]
    except (OSError, tomllib.TOMLDecodeError, KeyError):
        stored = ""
    found = sorted(file.parent for file in (store_root(stored) / run).glob(f"client-*/{FILE}"))
    return found[0] if found else Path("DEVICE_FOLDER")
