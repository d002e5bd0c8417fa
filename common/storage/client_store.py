"""A client's state between rounds, on its node's disk.

The key is our own run name, a stable client id and the round, because Flower's run and node ids change on a resume or a
restart. A task names the client's last committed version. Later versions come from a killed round or a lost reply and
are discarded; older ones are pruned.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from common.errors import UserError
from common.storage.files import read_tensors, write_tensors

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


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
        for round_, path in self._versions(client).items():
            if prune and round_ != version:
                path.unlink(missing_ok=True)
        if version == 0:
            return ClientState()
        path = self._path(client, version)
        if not path.exists():
            raise UserError(
                f"client {client}: its state of round {version} is not in {self.folder}: "
                "set clients.store to a folder that survives restarts and that all machines of a cluster share"
            )
        return ClientState(*read_tensors(path))

    def save(self, client: int, round_: int, state: ClientState) -> None:
        """Write the state of a round; it is valid once the server commits that round."""
        path = self._path(client, round_)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(path, state.tensors, state.values)

    def _path(self, client: int, round_: int) -> Path:
        return self.folder / f"client-{client:06d}" / f"round-{round_:06d}.safetensors"

    def _versions(self, client: int) -> dict[int, Path]:
        folder = self._path(client, 0).parent
        return {int(p.stem.split("-")[1]): p for p in folder.glob("round-*.safetensors")} if folder.is_dir() else {}
