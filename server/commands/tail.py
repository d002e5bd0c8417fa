"""Read the new lines of a JSON lines file that another process writes."""

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any


class Tail:
    """Follows a file, which may not exist yet, and which a resumed run replaces with a shorter one."""

    def __init__(self, file: Path) -> None:
        self._file, self._inode, self._position = file, 0, 0

    def read(self) -> list[dict[str, Any]]:
        """Return the objects of the lines completed since the last call; of all lines if the file was replaced."""
        try:
            with self._file.open("rb") as stream:
                inode = os.fstat(stream.fileno()).st_ino
                if inode != self._inode:
                    self._inode, self._position = inode, 0
                stream.seek(self._position)
                content = stream.read()
        except FileNotFoundError:
            return []
        completed = content[: content.rfind(b"\n") + 1]
        self._position += len(completed)
        found = []
        for line in completed.splitlines():
            with suppress(json.JSONDecodeError):  # a line that a kill cut short
                found.append(json.loads(line))
        return found
