"""Servers and channels of our own gRPC services: token, limits and TLS.

Every call carries the run's token. Off loopback TLS is mandatory, and a missing certificate or token is an error before
the server starts. Compression is off: features hardly shrink, and a small message could unpack into a huge one.
"""

import hmac
import ipaddress
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import grpc

from common.errors import UserError
from common.rpc.certificates import Certificate, check_pair

Option = tuple[str, int]
AUTHORIZATION = "authorization"


@dataclass(frozen=True)
class Limits:
    """The limits of a server or a channel."""

    message_bytes: int = 64 << 20  # larger messages are refused by their announced length, before they are read
    # at a time, each on a thread; further calls are refused. Two per streaming client: one may be broken
    calls: int = 64
    keepalive: float = 20.0  # seconds between pings; a peer that does not answer within half of that is gone


DEFAULT_LIMITS = Limits()


def new_token() -> str:
    """Return a token for one run, 256 random bits."""
    return secrets.token_urlsafe(32)


class RunningServer:
    """A server that has been started; a context manager that stops it."""

    def __init__(self, server: grpc.Server, pool: ThreadPoolExecutor, host: str, port: int) -> None:
        self._server, self._pool = server, pool
        self.host, self.port = host, port

    @property
    def address(self) -> str:
        """The address at which it listens, `host:port`."""
        return f"{self.host}:{self.port}"

    def stop(self, grace: float = 1.0) -> None:
        """Refuse new calls, give the open ones `grace` seconds, cancel them and wait for their threads."""
        self._server.stop(grace).wait()
        self._pool.shutdown(wait=True)

    def __enter__(self) -> "RunningServer":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def serve(
    register: Callable[[grpc.Server], None],
    address: str,
    token: str,
    certificate: Certificate | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> RunningServer:
    """Start a server at `host:port` (port 0: a free one) whose services `register` adds.

    Raises `UserError` when the address is off loopback without a certificate, or when either cannot be used.
    """
    host, port = split_address(address)
    _require_security(host, token, certificate is not None)
    if certificate is not None:
        try:
            check_pair(certificate)  # otherwise gRPC reports the address as unusable
        except ValueError as error:
            raise UserError(f"cannot serve at {address} with TLS: {error}") from error
    pool = ThreadPoolExecutor(limits.calls, thread_name_prefix="rpc")
    options: list[Option] = [
        *_options(limits),
        ("grpc.so_reuseport", 0),  # otherwise two servers may share a port without an error
        ("grpc.http2.min_ping_interval_without_data_ms", int(limits.keepalive * 500)),
    ]
    server = grpc.server(
        pool, interceptors=(_TokenCheck(token),), options=options, maximum_concurrent_rpcs=limits.calls
    )
    register(server)
    try:
        if certificate is None:
            bound = server.add_insecure_port(address)
        else:
            pair = (certificate.key, certificate.certificate)
            bound = server.add_secure_port(address, grpc.ssl_server_credentials([pair]))
    except RuntimeError as error:
        pool.shutdown()
        raise UserError(
            f"cannot listen at {address}: port {port} is taken, or {host} is not this machine: choose another"
        ) from error
    server.start()
    return RunningServer(server, pool, host, bound)


def connect(
    address: str, token: str, certificate: bytes | None = None, limits: Limits = DEFAULT_LIMITS
) -> grpc.Channel:
    """Return a channel to a server at `host:port` that trusts only `certificate` (PEM) and sends `token` in every call.

    Nothing is sent before the first call. Raises `UserError` when the address is off loopback without a certificate.
    """
    host, _ = split_address(address)
    _require_security(host, token, certificate is not None)
    options: list[Option] = [
        *_options(limits),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2000),
        ("grpc.enable_http_proxy", 0 if is_loopback(host) else 1),
        # each channel has its own connection, so that nodes in one process are as independent as on two machines
        ("grpc.use_local_subchannel_pool", 1),
    ]
    if certificate is None:
        channel = grpc.insecure_channel(address, options)
    else:
        channel = grpc.secure_channel(address, grpc.ssl_channel_credentials(certificate), options)
    return grpc.intercept_channel(channel, _TokenSender(token))


def host_and_port(host: str, port: int) -> str:
    """Return the address that gRPC and URLs take: an IPv6 host is in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach the address."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _options(limits: Limits) -> list[Option]:
    return [
        ("grpc.max_receive_message_length", limits.message_bytes),
        ("grpc.max_send_message_length", limits.message_bytes),
        ("grpc.compression_enabled_algorithms_bitset", 1),  # identity only
        ("grpc.keepalive_time_ms", int(limits.keepalive * 1000)),
        ("grpc.keepalive_timeout_ms", int(limits.keepalive * 500)),
        ("grpc.http2.max_pings_without_data", 0),
    ]


def split_address(address: str) -> tuple[str, int]:
    """Return host and port of `host:port`; raises `UserError`."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise UserError(f"{address!r} is not an address: give host:port, an IPv6 host in brackets")
    return host, int(port)


def superlink(text: str, *, encrypted: bool, remedy: str = "--root-certificates") -> str:
    """Return the `host:port` that `--superlink` means, which may be written as a URL; raises `UserError`.

    `remedy` names the option that encrypts the link, if it is not `encrypted`.
    """
    scheme, separator, rest = text.strip().rpartition("://")
    address = rest.rstrip("/")
    if separator and scheme.lower() not in ("http", "https", "grpc", "grpcs"):
        raise UserError(f"--superlink {text}: {scheme}:// is not known: write HOST:PORT")
    if scheme.lower() in ("https", "grpcs") and not encrypted:
        raise UserError(f"--superlink {text} asks for an encrypted link: add {remedy}, and write {address}")
    host, _, port = address.rpartition(":")
    if host and (":" not in host or host.endswith("]")) and port.isdecimal() and 0 < int(port) <= 65535:
        return address
    example = "[::1]:8000" if ":" in host else f"{host or address.strip(':') or 'server'}:8000"
    raise UserError(f"--superlink {text} has no host with a port from 1 to 65535: write HOST:PORT, such as {example}")


def _require_security(host: str, token: str, encrypted: bool) -> None:
    if not token:
        raise UserError("a stream needs the run's token")
    if not encrypted and not is_loopback(host):
        raise UserError(f"{host} is not loopback: streams across machines need TLS, so give a certificate")


def _refuse(_: object, context: grpc.ServicerContext) -> None:
    context.abort(grpc.StatusCode.UNAUTHENTICATED, "the call does not carry the run's token")


class _TokenCheck(grpc.ServerInterceptor):
    """Refuses a call without the token. The refusal is a stream handler, so that no request is read before it."""

    def __init__(self, token: str) -> None:
        self._expected = f"Bearer {token}".encode()
        self._refusal = grpc.stream_stream_rpc_method_handler(_refuse)

    def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Any], handler_call_details: grpc.HandlerCallDetails
    ) -> Any:
        metadata = dict(handler_call_details.invocation_metadata)
        if hmac.compare_digest(str(metadata.get(AUTHORIZATION, "")).encode(), self._expected):
            return continuation(handler_call_details)
        return self._refusal


class _Call(NamedTuple):
    method: str
    timeout: float | None
    metadata: list[tuple[str, str]]
    credentials: grpc.CallCredentials | None
    wait_for_ready: bool | None
    compression: grpc.Compression | None


class _TokenSender(
    grpc.StreamStreamClientInterceptor, grpc.UnaryStreamClientInterceptor, grpc.UnaryUnaryClientInterceptor
):
    """Adds the token to every call."""

    def __init__(self, token: str) -> None:
        self._entry = (AUTHORIZATION, f"Bearer {token}")

    def intercept_stream_stream(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        return continuation(self._with_token(client_call_details), request_iterator)

    def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return continuation(self._with_token(client_call_details), request)

    def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return continuation(self._with_token(client_call_details), request)

    def _with_token(self, call: Any) -> _Call:
        metadata = [*(call.metadata or ()), self._entry]
        return _Call(call.method, call.timeout, metadata, call.credentials, call.wait_for_ready, call.compression)
