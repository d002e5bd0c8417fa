"""Split training's streams through nginx with the shipped configuration: unchanged, with their own TLS and token."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from common.flower.processes import end, wait_for_port
from common.rpc.certificates import self_signed
from common.rpc.channels import connect, new_token, serve
from tests.docker.compose import DOCKER
from tests.docker.nginx import stream_module
from tests.support.deployment import free_port

TOKEN = new_token()
OURS = self_signed(["localhost"])  # the proxy's name on devices
pytestmark = pytest.mark.skipif(stream_module() is None, reason="nginx or its stream module is not installed")


def register(server: grpc.Server) -> None:
    handlers = {"many": grpc.stream_stream_rpc_method_handler(lambda requests, _: requests)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("Echo", handlers),))


@pytest.fixture(params=["8009", "8010"], ids=["split training", "rounds"])
def ports(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[int, int]]:
    """Yield the port of nginx and the port that it forwards to, in the place of one of the file's."""
    text, moved = (DOCKER / "streams.conf").read_text(), {n: (free_port(), free_port()) for n in ("8009", "8010")}
    for number, (port, behind) in moved.items():
        changes = {f"listen {number}": f"listen 127.0.0.1:{port}", f"server:{number};": f"127.0.0.1:{behind};"}
        for old, new in changes.items():
            assert old in text
            text = text.replace(old, new)
    port, behind = moved[request.param]
    (tmp_path / "streams.conf").write_text(text)
    (tmp_path / "nginx.conf").write_text(f"daemon off; pid {tmp_path}/pid; error_log stderr; events {{}}")
    include = f"{stream_module()}include {tmp_path}/streams.conf;"  # as compose.tls.yml has it
    process = subprocess.Popen(["nginx", "-c", f"{tmp_path}/nginx.conf", "-g", include])
    try:
        assert wait_for_port("127.0.0.1", port, process)
        yield port, behind
    finally:
        end(process)


def test_stream_passes_proxy_with_own_certificate_and_token(ports):
    port, behind = ports
    with serve(register, f"127.0.0.1:{behind}", TOKEN, OURS):
        with connect(f"localhost:{port}", TOKEN, OURS.certificate) as channel:
            assert list(channel.stream_stream("/Echo/many")(iter([b"a", b"b"]), timeout=30)) == [b"a", b"b"]
        with connect(f"127.0.0.1:{port}", TOKEN, OURS.certificate) as channel:  # a name that is not in the certificate
            assert code(channel) == grpc.StatusCode.UNAVAILABLE
        with connect(f"localhost:{port}", TOKEN[:-1], OURS.certificate) as channel:
            assert code(channel) == grpc.StatusCode.UNAUTHENTICATED


def code(channel: grpc.Channel) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as raised:
        list(channel.stream_stream("/Echo/many")(iter([b"a"]), timeout=30))
    return raised.value.code()
