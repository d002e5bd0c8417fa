"""Where a stream of the server is served, and under which address devices get it."""

import socket

import grpc
import pytest

from common.rpc.channels import Limits, connect
from common.rpc.streams import served
from common.sections.stream import StreamSettings


def ipv6_available() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


@pytest.mark.parametrize("tls", [True, False])
@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "[::1]", "localhost"])
def test_devices_reach_the_announced_address(host: str, tls: bool) -> None:
    if "::" in host and not ipv6_available():
        pytest.skip("this machine has no IPv6 loopback")
    with served(lambda server: None, StreamSettings(host=host, tls=tls), 0, Limits(), "test streams") as stream:
        assert bool(stream.certificate) == tls
        assert stream.address.startswith(f"[{host.strip('[]')}]:" if "::" in host else f"{host}:")
        with connect(stream.address, stream.token, stream.certificate.encode() or None, Limits()) as channel:
            grpc.channel_ready_future(channel).result(20)
