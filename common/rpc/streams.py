"""Serve one of the server's streams where the section `stream` of the configuration says."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from logging import INFO
from typing import NamedTuple

import grpc
from flwr.supercore import log

from common.rpc.certificates import self_signed
from common.rpc.channels import Limits, host_and_port, is_loopback, new_token, serve
from common.sections.stream import StreamSettings


class Served(NamedTuple):
    """What a device needs to open a stream."""

    address: str  # by which devices reach the server
    certificate: str  # to trust; empty: not encrypted
    token: str  # of the run


@contextmanager
def served(
    register: Callable[[grpc.Server], None], section: StreamSettings, port: int, limits: Limits, what: str
) -> Iterator[Served]:
    """Serve `what` while this block lasts, off loopback with TLS; raises what `serve` does."""
    host, token = section.host.strip("[]"), new_token()
    bind = section.bind.strip("[]") or host
    encrypted = section.tls or not (is_loopback(host) and is_loopback(bind))
    certificate = self_signed([host]) if encrypted else None
    with serve(register, host_and_port(bind, port), token, certificate, limits) as running:
        where = host_and_port(bind, running.port)
        log(INFO, "%s are served at %s%s", what, where, ", TLS" if certificate else "")
        text = certificate.certificate.decode() if certificate else ""
        yield Served(host_and_port(host, running.port), text, token)
