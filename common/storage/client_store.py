"""A client's state between rounds, on its node's disk.

The key is our own run name, a stable client id and the round, because Flower's run and node ids change on a resume or a
restart. A task names the client's last committed version. Later versions come from a killed round or a lost reply and
are discarded; older ones are pruned.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from common.errors import UserError
from common.storage.files import read_tensors, write_bytes, write_tensors, write_text

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
TOKEN = ".server"  # holds the server's token in a folder that machines share


@dataclass
class ClientState:
    """Tensors and plain values that a client's method keeps."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)


class ClientStore:
    """The states of one run's clients below `root/<run>/`. A client without a state has no folder."""

    def __init__(self, root: Path, run: str) -> None:
        if not NAME.fullmatch(run):
            raise UserError(
                f"run name {run!r} is not valid: write letters, digits, '.', '_' and '-', 100 at most, "
                "with a letter or digit first"
            )
        self.folder = root / run

    def load(self, client: int, version: int, *, prune: bool = True) -> ClientState:
        """Return the client's state as committed in round `version`; 0 is the empty state.

        `prune` deletes every other version. Prune only once the server's checkpoint names this version: otherwise a run
        that is killed in between cannot be continued. Raises `UserError` when the committed version is missing.
        """
        state = ClientState() if version == 0 else ClientState(*read_tensors(self._existing(client, version)))
        if prune:  # only now: what cannot be read must not cost the others as well
            self.prune(client, {version})
        return state

    def save(self, client: int, round_: int, state: ClientState) -> None:
        """Write the state of a round; it is valid once the server commits that round."""
        path = self._path(client, round_)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(path, state.tensors, state.values)

    def prune(self, client: int, versions: Collection[int]) -> None:
        """Delete the client's states of all rounds but these, and what a killed process left half written."""
        for path in self._path(client, 0).parent.glob(".round-*"):
            path.unlink(missing_ok=True)
        for round_, path in self._versions(client).items():
            if round_ not in versions:
                path.unlink(missing_ok=True)

    def read(self, client: int, version: int) -> bytes:
        """Return a state as it travels; raises `UserError` when it is missing."""
        return self._existing(client, version).read_bytes()

    def write(self, client: int, version: int, data: bytes) -> None:
        """Store a state that travelled here, the inverse of `read`."""
        path = self._path(client, version)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, data)

    def mark(self, token: str) -> None:
        """Write a token into the folder, for `check` on other machines."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(self.folder / TOKEN, token)

    def check(self, token: str) -> None:
        """Raise `UserError` unless the folder has this token: then it is not the folder that the server sees."""
        path = self.folder / TOKEN
        if not path.exists() or path.read_text() != token:
            raise UserError(
                f"{self.folder} is not the folder that the server writes to: mount clients.store on this machine, or "
                "leave clients.store out and let the states travel (clients.state=server)"
            )

    def _existing(self, client: int, version: int) -> Path:
        path = self._path(client, version)
        if not path.exists():
            raise UserError(
                f"client {client}: its state of round {version} is not in {self.folder}: "
                "set clients.store to a folder that survives restarts and that all machines of a cluster share"
            )
        return path

    def _path(self, client: int, round_: int) -> Path:
        return self.folder / f"client-{client:06d}" / f"round-{round_:06d}.safetensors"

    def _versions(self, client: int) -> dict[int, Path]:
        folder = self._path(client, 0).parent
        return {int(p.stem.split("-")[1]): p for p in folder.glob("round-*.safetensors")} if folder.is_dir() else {}
