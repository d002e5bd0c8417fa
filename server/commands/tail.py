"""A file of JSON lines that another process writes, of which each look reads only what is new."""

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any


class Tail:
    """Follows a file, which need not be there yet, and which a run that is resumed replaces by a shorter one."""

    def __init__(self, file: Path) -> None:
        self._file, self._inode, self._position = file, 0, 0

    def read(self) -> list[dict[str, Any]]:
        """Return the objects whose lines were ended since the last look; all of them if the file is another one."""
        try:
            with self._file.open("rb") as stream:
                inode = os.fstat(stream.fileno()).st_ino
                if inode != self._inode:
                    self._inode, self._position = inode, 0
                stream.seek(self._position)
                content = stream.read()
        except FileNotFoundError:
            return []
        ended = content[: content.rfind(b"\n") + 1]
        self._position += len(ended)
        found = []
        for line in ended.splitlines():
            with suppress(json.JSONDecodeError):  # what a kill cut short
                found.append(json.loads(line))
        return found
