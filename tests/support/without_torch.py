"""`python -m client ...` in a process where torch, torchvision and Flower cannot be imported, as on a small device."""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

ABSENT = ("flwr", "ray", "torch", "torchvision")
COMMAND = [sys.executable, str(Path(__file__).resolve())]


class Absent(MetaPathFinder):
    """Finds no package of `ABSENT`."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)
        return None


if __name__ == "__main__":
    sys.meta_path.insert(0, Absent())
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    from client.__main__ import main

    code = main(sys.argv[1:])
    assert not sys.modules.keys() & set(ABSENT)
    sys.exit(code)
