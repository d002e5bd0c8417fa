"""A device's clock is compared with the server's before anything starts."""

import threading
import time
from collections.abc import Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from client.commands.clock import check_clock
from common.errors import UserError
from common.flower.processes import free_port


class Server(HTTPServer):
    """Answers as a proxy that rejects every request: with the time."""

    date: str | None = None


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.send_response_only(403)
        if self.server.date is not None:
            self.send_header("Date", self.server.date)
        self.end_headers()


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("behind", "message"),
    [
        (3600, r"is 3(600|59\d) s behind that of 127.0.0.1:.*, which accepts devices up to 305 s behind its own: set"),
        (-3600, r"is 360\d s ahead of that of 127.0.0.1:.*, which accepts devices up to 5 s ahead"),
        (320, r"is 3[12]\d s behind"),
        (-20, r"is 2\d s ahead"),
    ],
)
def test_a_clock_that_is_off_raises(server: Server, behind: float, message: str) -> None:
    server.date = formatdate(time.time() + behind, usegmt=True)
    with pytest.raises(UserError, match=message):
        check_clock("127.0.0.1", server.server_port, None)


@pytest.mark.parametrize("behind", [290, 0, -1])
def test_a_clock_within_the_limits_passes(server: Server, behind: float) -> None:
    server.date = formatdate(time.time() + behind, usegmt=True)
    check_clock("127.0.0.1", server.server_port, None)


@pytest.mark.parametrize("date", [None, "yesterday"])
def test_a_server_without_a_readable_time_passes(server: Server, date: str | None) -> None:
    server.date = date
    check_clock("127.0.0.1", server.server_port, None)


def test_a_server_that_is_away_passes() -> None:
    check_clock("127.0.0.1", free_port(), None)
