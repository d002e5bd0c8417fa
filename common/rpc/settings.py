"""What the user can say about streams."""

from dataclasses import dataclass

from common.settings import Settings, at_least


@dataclass(frozen=True)
class StreamSettings(Settings):
    """The server's address for what does not fit into Flower's messages, and its patience."""

    SECTION = "stream"

    host: str = "127.0.0.1"  # name or address by which devices reach the server
    bind: str = ""  # address to listen at, such as 0.0.0.0; empty: the host's
    port: int = 0  # 0: a free one
    tls: bool = False  # on loopback too; everywhere else there is no stream without
    window: int = 2  # batches of a client that may be on their way
    patience: float = 60.0  # seconds that the server waits for a client's next batch before it goes on without it

    def problems(self) -> list[str]:
        """Return every mistake as a sentence."""
        found = at_least(self, port=0, window=1, patience=0.1)
        if not self.host:
            found.append("stream.host must not be empty: give a name or address by which devices reach the server")
        return found + (["stream.port must not exceed 65535"] if self.port > 65535 else [])
