"""Check this device's clock against the server's.

Flower signs every request of a device with the time, with registered keys and without, and refuses requests that are
signed more than a few minutes off with a bare 401. The device cannot repair this, so it reports the cause.
"""

import http.client
import ssl
import time
from email.utils import parsedate_to_datetime

from common.errors import UserError

AHEAD, BEHIND = 5.0, 305.0  # seconds by which a device's clock may differ (Flower 1.42)
PATIENCE = 5.0  # seconds


def check_clock(host: str, port: int, context: ssl.SSLContext | None) -> None:
    """Raise `UserError` if the server, which answers any request with its time, will refuse this device's signatures.

    `context`: for TLS; None: not encrypted. A server that does not answer raises nothing.
    """
    server = (
        http.client.HTTPConnection(host, port, timeout=PATIENCE)
        if context is None
        else http.client.HTTPSConnection(host, port, timeout=PATIENCE, context=context)
    )
    try:
        sent = time.time()
        server.request("GET", "/health")
        stamp = parsedate_to_datetime(server.getresponse().getheader("Date", "")).timestamp()
        received = time.time()
    except (OSError, http.client.HTTPException, ValueError):
        return
    finally:
        server.close()
    # the stamp has whole seconds, and was made between request and response
    least, most = sent - stamp - 1, received - stamp
    if least > AHEAD or most < -BEHIND:
        word, limit = ("ahead of", AHEAD) if least > AHEAD else ("behind", BEHIND)
        raise UserError(
            f"this device's clock is {abs(round(most))} s {word} that of {host}:{port}, which accepts devices up to "
            f"{limit:.0f} s {word} its own: set the clock, best with NTP"
        )
