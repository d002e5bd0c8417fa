"""A service that no run announces: its options, its secrets in files, and serving until a signal stops it.

gRPC's health service and reflection run there too, behind the same token.
"""

import argparse
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Event

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from common.errors import UserError
from common.rpc.certificates import Certificate
from common.rpc.channels import Limits, is_loopback, serve, split_address
from common.rpc.secrets import CERTIFICATE, read_or_make_certificate, read_or_make_token


@dataclass(frozen=True)
class Access:
    """A service's address and the secrets that its callers need."""

    address: str  # to listen at
    name: str  # by which callers reach its host
    token: str
    token_file: Path
    certificate: Certificate | None = None  # None: not encrypted
    certificate_file: Path | None = None


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that `access` reads."""
    parser.add_argument("--address", default="127.0.0.1:0", help="HOST:PORT to listen at, port 0: a free one")
    parser.add_argument("--name", help="name or address by which others reach HOST, if it differs")
    parser.add_argument("--token-file", type=Path, metavar="FILE", help="made if missing (default: the model's folder)")
    parser.add_argument("--tls", action="store_true", help="encrypt on loopback too; everywhere else always")
    parser.add_argument(
        "--certificate-dir", type=Path, metavar="FOLDER",
        help=f"of key.pem and {CERTIFICATE}, made if missing (default: the model's folder)",
    )  # fmt: skip


def access(options: argparse.Namespace, folder: Path, token_name: str) -> Access:
    """Return the access that the options describe, with `folder` for files without an option; makes missing secrets.

    Raises `UserError` when the address is not valid, the host has no name, or a file cannot be read or made.
    """
    host, _ = split_address(options.address)
    if not options.name and host.strip("[]") in ("0.0.0.0", "::"):
        raise UserError(f"--address {options.address} is every interface: give the --name by which others reach it")
    name = str(options.name or host)
    token_file = options.token_file or folder / token_name
    token = read_or_make_token(token_file)
    if not options.tls and is_loopback(host):
        return Access(options.address, name, token, token_file)
    keys = options.certificate_dir or folder
    certificate = read_or_make_certificate(keys, [name.strip("[]")])
    return Access(options.address, name, token, token_file, certificate, keys / CERTIFICATE)


def serve_until_stopped(
    register: Callable[[grpc.Server], None],
    service: str,
    reached: Access,
    limits: Limits,
    announce: Callable[[str], str],
) -> None:
    """Serve until SIGINT or SIGTERM; prints the text that `announce` returns. Raises what `serve` does.

    Args:
        register: adds the service to a server.
        service: its full name.
        reached: from `access`.
        limits: of the server.
        announce: address, `host:port` -> the text to print once it listens.
    """
    probe, stopped = health.HealthServicer(), Event()
    probe.set(service, health_pb2.HealthCheckResponse.SERVING)

    def register_all(server: grpc.Server) -> None:
        register(server)
        health_pb2_grpc.add_HealthServicer_to_server(probe, server)
        reflection.enable_server_reflection((service, health.SERVICE_NAME, reflection.SERVICE_NAME), server)

    signals = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda *_: stopped.set()) for number in signals}
    try:
        with serve(register_all, reached.address, reached.token, reached.certificate, limits) as running:
            print(announce(f"{reached.name}:{running.port}"), flush=True)
            stopped.wait()
            probe.enter_graceful_shutdown()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
