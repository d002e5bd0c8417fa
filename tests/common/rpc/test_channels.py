"""Which calls are accepted, with a service that returns its requests."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import pytest
from cryptography import x509

from common.errors import UserError
from common.rpc.certificates import Certificate, self_signed
from common.rpc.channels import Limits, connect, is_loopback, new_token, serve, superlink

TOKEN = new_token()
LOCAL = self_signed(["127.0.0.1", "localhost"])


class Echo:
    def __init__(self) -> None:
        self.served = 0

    def register(self, server: grpc.Server) -> None:
        def one(request: bytes, _: object) -> bytes:
            self.served += 1
            return request

        handlers = {
            "one": grpc.unary_unary_rpc_method_handler(one),
            "each": grpc.unary_stream_rpc_method_handler(lambda request, _: iter([request, request])),
            "many": grpc.stream_stream_rpc_method_handler(lambda requests, _: requests),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("Echo", handlers),))


@contextmanager
def calling(*args, **kwargs) -> Iterator[grpc.UnaryUnaryMultiCallable]:
    with connect(*args, **kwargs) as channel:
        yield channel.unary_unary("/Echo/one")


def status(call, *args, **kwargs) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as raised:
        call(*args, **{"timeout": 10, **kwargs})
    return raised.value.code(), raised.value.details()


@pytest.mark.parametrize("certificate", [None, LOCAL], ids=["plain", "tls"])
def test_single_and_streamed_messages_get_through(certificate):
    with serve(Echo().register, "127.0.0.1:0", TOKEN, certificate) as server:
        assert server.port > 0
        with connect(server.address, TOKEN, certificate and certificate.certificate) as channel:
            assert channel.unary_unary("/Echo/one")(b"x", timeout=10) == b"x"
            assert list(channel.unary_stream("/Echo/each")(b"x", timeout=10)) == [b"x", b"x"]
            assert list(channel.stream_stream("/Echo/many")(iter([b"a", b"b"]), timeout=10)) == [b"a", b"b"]


def test_wrong_token_is_refused_before_the_request_is_read():
    echo = Echo()
    with serve(echo.register, "127.0.0.1:0", TOKEN, limits=Limits(message_bytes=1000)) as server:
        with calling(server.address, TOKEN[:-1]) as call:
            assert status(call, b"x") == (grpc.StatusCode.UNAUTHENTICATED, "the call does not carry the run's token")
        with grpc.insecure_channel(server.address) as channel:
            call = channel.unary_unary("/Echo/one")
            assert status(call, b"x")[0] == grpc.StatusCode.UNAUTHENTICATED
            # not RESOURCE_EXHAUSTED: the message was not read
            assert status(call, bytes(2000))[0] == grpc.StatusCode.UNAUTHENTICATED
            assert status(call, b"x", metadata=[("authorization", TOKEN)])[0] == grpc.StatusCode.UNAUTHENTICATED
            many = channel.stream_stream("/Echo/many")
            with pytest.raises(grpc.RpcError) as raised:
                next(many(iter([b"x"]), timeout=10))
            assert raised.value.code() == grpc.StatusCode.UNAUTHENTICATED
        assert not echo.served
        with calling(server.address, TOKEN) as call:
            assert call(b"x", timeout=10) == b"x"


def test_only_the_certificate_of_the_run_is_trusted():
    with serve(Echo().register, "127.0.0.1:0", TOKEN, LOCAL) as server:
        with calling(server.address, TOKEN, self_signed(["127.0.0.1"]).certificate) as call:
            assert status(call, b"x")[0] == grpc.StatusCode.UNAVAILABLE
        with calling(server.address, TOKEN) as call:
            assert status(call, b"x")[0] == grpc.StatusCode.UNAVAILABLE
        with calling(f"localhost:{server.port}", TOKEN, LOCAL.certificate) as call:
            assert call(b"x", timeout=10) == b"x"
    elsewhere = self_signed(["10.1.2.3", "server.example"])
    with (
        serve(Echo().register, "127.0.0.1:0", TOKEN, elsewhere) as server,
        calling(server.address, TOKEN, elsewhere.certificate) as call,
    ):
        assert status(call, b"x")[0] == grpc.StatusCode.UNAVAILABLE  # the right key at the wrong address


def test_large_messages_are_refused_on_both_sides():
    small, large = Limits(message_bytes=1000), Limits(message_bytes=10_000)
    with serve(Echo().register, "127.0.0.1:0", TOKEN, limits=small) as server:
        with calling(server.address, TOKEN, limits=large) as call:
            code, details = status(call, bytes(2000))
            assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "larger than max" in details
            assert len(call(bytes(1000), timeout=10)) == 1000
        with calling(server.address, TOKEN, limits=small) as call:
            assert status(call, bytes(2000))[0] == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_compressed_messages_are_refused():
    """A thousand bytes could unpack into a million."""
    with serve(Echo().register, "127.0.0.1:0", TOKEN) as server, grpc.insecure_channel(server.address) as channel:
        call, token = channel.unary_unary("/Echo/one"), [("authorization", f"Bearer {TOKEN}")]
        assert len(call(bytes(10_000), timeout=10, metadata=token)) == 10_000
        code, _ = status(call, bytes(10_000), metadata=token, compression=grpc.Compression.Gzip)
        assert code == grpc.StatusCode.UNIMPLEMENTED


def test_calls_beyond_the_limit_are_refused():
    with (
        serve(Echo().register, "127.0.0.1:0", TOKEN, limits=Limits(calls=1)) as server,
        connect(server.address, TOKEN) as channel,
    ):
        feed = iter(lambda: b"x", None)
        stream = channel.stream_stream("/Echo/many")(feed)
        assert next(stream) == b"x"
        assert status(channel.unary_unary("/Echo/one"), b"x")[0] == grpc.StatusCode.RESOURCE_EXHAUSTED
        stream.cancel()


@pytest.mark.parametrize("start", [b"", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n"])
def test_noise_on_the_port_leaves_other_calls_intact(start):
    with serve(Echo().register, "127.0.0.1:0", TOKEN) as server:
        for _ in range(5):
            with socket.create_connection(("127.0.0.1", server.port)) as connection:
                connection.sendall(start + os.urandom(5000))
        with calling(server.address, TOKEN) as call:
            assert call(b"x", timeout=10) == b"x"


def test_off_loopback_needs_tls_and_token():
    with pytest.raises(UserError, match="TLS"):
        serve(Echo().register, "0.0.0.0:0", TOKEN)
    with pytest.raises(UserError, match="TLS"):
        connect("10.0.0.1:80", TOKEN)
    for token_only in (None, LOCAL.certificate):
        with pytest.raises(UserError, match="token"):
            connect("127.0.0.1:80", "", token_only)
    with pytest.raises(UserError, match="token"):
        serve(Echo().register, "127.0.0.1:0", "", LOCAL)
    with (
        serve(Echo().register, "0.0.0.0:0", TOKEN, LOCAL) as server,
        calling(f"127.0.0.1:{server.port}", TOKEN, LOCAL.certificate) as call,
    ):
        assert call(b"x", timeout=10) == b"x"


@pytest.mark.parametrize("address", ["", "localhost", "localhost:http", ":80", "localhost:70000", "localhost:-1"])
def test_address_needs_host_and_port(address):
    with pytest.raises(UserError, match="host:port"):
        connect(address, TOKEN)


def test_port_is_never_shared():
    with (
        serve(Echo().register, "127.0.0.1:0", TOKEN) as server,
        pytest.raises(UserError, match=f"port {server.port} is taken"),
    ):
        serve(Echo().register, server.address, TOKEN)


def test_wrong_key_is_not_reported_as_a_port_in_use():
    for mixed, reason in [
        (Certificate(self_signed(["127.0.0.1"]).key, LOCAL.certificate), "not a pair"),
        (Certificate(b"oops", LOCAL.certificate), "the key cannot be read"),
        (Certificate(LOCAL.key, b"oops"), "the certificate cannot be read"),
    ]:
        with pytest.raises(UserError, match=f"cannot serve at 127.0.0.1:0 with TLS: .*{reason}"):
            serve(Echo().register, "127.0.0.1:0", TOKEN, mixed)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        *((host, True) for host in ("127.0.0.1", "127.9.9.9", "[::1]", "localhost")),
        *((host, False) for host in ("0.0.0.0", "[::]", "192.168.0.1", "server", "localhost.example")),
    ],
)
def test_loopback_is_recognised(host, expected):
    assert is_loopback(host) == expected


def test_certificate_names_its_hosts_and_hides_its_key():
    certificate = self_signed(["server.example", "10.1.2.3", "::1"], days=3)
    read = x509.load_pem_x509_certificate(certificate.certificate)
    names = read.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["server.example"]
    assert list(map(str, names.get_values_for_type(x509.IPAddress))) == ["10.1.2.3", "::1"]
    assert (read.not_valid_after_utc - read.not_valid_before_utc).days == 4
    assert "PRIVATE" not in repr(certificate)
    assert certificate.key != self_signed(["x"]).key
    with pytest.raises(ValueError, match="at least one"):
        self_signed([])


@pytest.mark.parametrize(
    ("text", "encrypted", "address"),
    [
        ("server:8000", False, "server:8000"),
        (" http://server:8000/ ", False, "server:8000"),
        ("grpc://127.0.0.1:8000", False, "127.0.0.1:8000"),
        ("https://server:443", True, "server:443"),
        ("HTTPS://[::1]:443/", True, "[::1]:443"),
    ],
)
def test_superlink_may_be_written_as_url(text, encrypted, address):
    assert superlink(text, encrypted=encrypted) == address


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("https://server:443", r"https://server:443 asks for an encrypted link: add --tls, and write server:443"),
        ("ftp://server:8000", r"ftp:// is not known: write HOST:PORT"),
        ("server", r"from 1 to 65535: write HOST:PORT, such as server:8000"),
        ("http://server", r"such as server:8000"),
        ("server:", r"such as server:8000"),
        ("server:0", r"such as server:8000"),
        ("server:70000", r"such as server:8000"),
        ("server:http", r"such as server:8000"),
        ("server:8000/path", r"such as server:8000"),
        ("::1", r"such as \[::1\]:8000"),
        (":8000", r"write HOST:PORT"),
        ("", r"such as server:8000"),
    ],
)
def test_superlink_without_host_and_port_is_explained(text, message):
    with pytest.raises(UserError, match=message):
        superlink(text, encrypted=False, remedy="--tls")
