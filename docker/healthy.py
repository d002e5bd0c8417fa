"""`python docker/healthy.py PORT`: exit 0 if Flower's process answers at this port of loopback, with or without TLS.

The certificate is not checked: the request stays on this machine and holds no secret.
"""

import ssl
import sys
from urllib.error import URLError
from urllib.request import urlopen


def healthy(port: int) -> bool:
    """Return whether `/health` answers 200."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    for scheme in ("http", "https"):
        try:
            with urlopen(f"{scheme}://127.0.0.1:{port}/health", timeout=4, context=context) as answer:
                return bool(answer.status == 200)
        except (URLError, OSError):  # a TLS port closes plain HTTP connections
            continue
    return False


if __name__ == "__main__":
    sys.exit(0 if healthy(int(sys.argv[1])) else 1)
