"""The state of a central training after each epoch, from which a killed one continues with the same bits."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from common.errors import UserError
from common.storage.files import read_tensors, write_tensors

FILE = "checkpoint.safetensors"


@dataclass(frozen=True)
class Progress:
    """Everything that a training changes."""

    modules: nn.Module
    optimizer: torch.optim.SGD
    scheduler: torch.optim.lr_scheduler.LambdaLR
    generators: Sequence[torch.Generator]
    device: torch.device

    def tensors(self) -> dict[str, Tensor]:
        """Return the weights, the momenta and the states of all generators, by name."""
        found = {f"model.{key}": value for key, value in self.modules.state_dict().items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            if state.get("momentum_buffer") is not None:
                found[f"momentum.{index}"] = state["momentum_buffer"]
        found |= {f"generator.{at}": one.get_state() for at, one in enumerate(self.generators)}
        found["generator.global"] = torch.default_generator.get_state()
        if self.device.type == "cuda":
            found["generator.device"] = torch.cuda.get_rng_state(self.device)
        return found

    def load(self, tensors: dict[str, Tensor], steps: int) -> None:
        """Restore what `tensors` returned after so many steps; raises `KeyError` or `RuntimeError`."""
        own = {key.removeprefix("model."): value for key, value in tensors.items() if key.startswith("model.")}
        self.modules.load_state_dict(own)
        momenta = {
            int(key.removeprefix("momentum.")): {"momentum_buffer": value}
            for key, value in tensors.items()
            if key.startswith("momentum.")
        }
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": momenta})
        self.scheduler.load_state_dict({**self.scheduler.state_dict(), "last_epoch": steps})
        for group, base, factor in zip(
            self.optimizer.param_groups, self.scheduler.base_lrs, self.scheduler.lr_lambdas, strict=True
        ):
            group["lr"] = base * factor(steps)
        for at, one in enumerate(self.generators):
            one.set_state(tensors[f"generator.{at}"])
        torch.default_generator.set_state(tensors["generator.global"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(tensors["generator.device"], self.device)


@dataclass(frozen=True)
class Checkpoint:
    """A file that holds the last finished epoch."""

    path: Path
    about: str  # what decides the training's result: a checkpoint of another training is refused

    def write(self, progress: Progress, epoch: int) -> None:
        """Replace the file by the state after this epoch; raises `StorageError`."""
        values = {"epoch": epoch, "steps": progress.scheduler.last_epoch, "about": self.about}
        write_tensors(self.path, progress.tensors(), values)

    def restore(self, progress: Progress) -> int:
        """Load the file and return its epoch; 0 if there is none.

        Raises:
            UserError: the file is damaged or of another training.
        """
        if not self.path.exists():
            return 0
        tensors, values = read_tensors(self.path)
        if values.get("about") != self.about:
            raise UserError(f"{self.path} is of a training with other settings: repeat these, or name a new folder")
        try:
            progress.load(tensors, int(values["steps"]))
            return int(values["epoch"])
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise UserError(f"{self.path} is damaged ({error}): remove it to start again") from error

    def remove(self) -> None:
        """Delete the file, once the results are written."""
        self.path.unlink(missing_ok=True)
