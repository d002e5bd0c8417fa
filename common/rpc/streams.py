"""Serve one of the server's streams where the section `stream` of the configuration says."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from logging import INFO
from typing import NamedTuple

import grpc
from flwr.supercore import log

from common.rpc.certificates import self_signed
from common.rpc.channels import Limits, is_loopback, new_token, serve
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
    bind, token = section.bind or section.host, new_token()
    encrypted = section.tls or not (is_loopback(section.host) and is_loopback(bind))
    certificate = self_signed([section.host]) if encrypted else None
    with serve(register, f"{bind}:{port}", token, certificate, limits) as running:
        log(INFO, "%s are served at %s:%d%s", what, bind, running.port, ", TLS" if certificate else "")
        text = certificate.certificate.decode() if certificate else ""
        yield Served(f"{section.host}:{running.port}", text, token)
