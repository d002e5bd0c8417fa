"""The section `stream` of the configuration."""

from dataclasses import dataclass

from common.settings import Settings, at_least, at_most


@dataclass(frozen=True)
class StreamSettings(Settings):
    """The server's address for its own gRPC streams, and their limits."""

    SECTION = "stream"

    host: str = "127.0.0.1"  # name or address by which devices reach the server
    bind: str = ""  # address to listen at, such as 0.0.0.0; empty: the host's
    port: int = 0  # of split training; 0: a free one
    rounds_port: int = 0  # of the rounds' orders and replies; 0: a free one
    tls: bool = False  # encrypt on loopback too; other addresses are always encrypted
    window: int = 2  # batches of a client that may be unacknowledged
    patience: float = 60.0  # seconds that the server waits for a client's next batch before it continues without it

    def problems(self) -> list[str]:
        """Return every mistake as a sentence."""
        found = at_least(self, port=0, rounds_port=0, window=1, patience=0.1)
        found += at_most(self, port=65535, rounds_port=65535)
        if not self.host:
            found.append("stream.host is empty: give a name or address by which devices reach the server")
        return found
