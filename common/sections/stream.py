"""The section `stream` of the configuration."""

from pydantic import Field

from common.settings import Settings


class StreamSettings(Settings):
    """The server's address for its own gRPC streams, and their limits."""

    SECTION = "stream"

    host: str = "127.0.0.1"
    """name or address by which devices reach the server"""
    bind: str = ""
    """address to listen at, such as 0.0.0.0; empty: the host's"""
    port: int = Field(0, ge=0, le=65535)
    """port of split training; 0: a free one"""
    rounds_port: int = Field(0, ge=0, le=65535)
    """port of the rounds' orders and replies; 0: a free one"""
    memory: int = Field(0, ge=0)
    """megabytes of rounds' replies that the server holds at once; others wait; 0: a quarter of its free memory"""
    tls: bool = False
    """encrypt on loopback too; other addresses are always encrypted"""
    window: int = Field(2, ge=1)
    """batches of a client that may be unacknowledged"""
    patience: float = Field(60.0, ge=0.1)
    """seconds that the server waits for a client's next batch before it continues without it"""

    def other_mistakes(self) -> list[str]:
        """Check the host."""
        return [] if self.host else ["stream.host is empty: give a name or address by which devices reach the server"]
