"""The contract of every network: ordered units, exits after some of them, parts with the same parameter names."""

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from common.errors import UserError
from common.networks.heads import ExitHead, MapHead, Squares
from common.seeding import seeded

Rescale = Literal["none", "boost", "legacy"]
Leaves = Callable[[int, Tensor], Tensor]


@dataclass(frozen=True)
class Trunk:
    """A backbone without its exits."""

    units: list[nn.Module]  # in order
    widths: tuple[int, ...]  # length of the pooled feature after each unit
    head: Callable[[int, int], ExitHead]  # (width, classes) -> a new exit head
    latent_shape: tuple[int, ...]  # of the tensor that enters unit `latent_unit`, without the batch
    latent_unit: int = 1
    exits: tuple[int, ...] = ()  # units before each exit by default, of a trunk from outside; (): after every unit


@dataclass(frozen=True)
class Architecture:
    """Facts about the whole network, which all its parts hold too."""

    num_classes: int
    input_shape: tuple[int, ...]  # (C, H, W), or (L,) of a text's token ids
    tier_positions: tuple[int, ...]  # units of each depth tier
    widths: tuple[int, ...]  # length of the pooled feature after each unit, of a divided map per square
    head: Callable[[int, int], ExitHead]  # (width, classes) -> a new exit head
    latent_shape: tuple[int, ...]  # of the tensor that enters unit `latent_unit`, without the batch
    latent_unit: int = 1
    ensemble: float = 0.0  # weight of the previous exit's logits; 0: exits are independent
    seed: int = 0  # of new heads
    vocabulary: int = 0  # number of token ids; 0: images
    recurrent: int = 0  # width of the exits' tokens, which one shared classifier sees; 0: every exit has its own
    squares: tuple[Squares | None, ...] = ()  # of what each unit returns, None if it is no map; (): heads divide none

    def new_head(self, position: int) -> ExitHead:
        """Return a fresh head for the exit after `position` units.

        Its weights depend on the seed and the position alone: a head made on demand at a cut equals the one
        that the whole network would have had there. The global random state does not change.
        """
        with seeded("exit head", self.seed, position):
            head = self.head(self.widths[position - 1], self.recurrent or self.num_classes)
            squares = self.squares[position - 1] if self.squares else None
            if squares and isinstance(head, MapHead):
                head.divide(squares)
        return head


@dataclass(frozen=True)
class ExitOutput:
    """The outputs of one exit."""

    logits: Tensor  # (B, classes); the ensembled ones F_e if the network is an ensemble, else z_e
    feature: Tensor  # (B, width): the pooled feature before the head
    carried: Tensor  # what the next exit needs: logits (B, classes), of recurrent exits all tokens so far (B, exits, d)


@dataclass(frozen=True)
class ExitOutputs:
    """The outputs of one pass, exits from shallow to deep."""

    logits: list[Tensor]  # (B, classes) per exit, see `ExitOutput`
    features: list[Tensor]  # (B, width) per exit
    trunk: Tensor  # after the last unit of this part: the smashed data at a cut
    carried: Tensor | None = None  # what a suffix's exits need of those before them


@dataclass(frozen=True)
class Inference:
    """The outputs of early-exit inference."""

    logits: Tensor  # (B, classes), of each sample at the exit where it left
    exits: Tensor  # (B,) int64, that exit's index from 0 within this part


@dataclass(frozen=True)
class Left:
    """The samples that leave at one exit."""

    exit: int  # its index from 0 within this part
    rows: Tensor  # (b,) int64, rising: which samples of the batch
    logits: Tensor  # (b, classes)


class _RescaleGradient(torch.autograd.Function):
    """The identity in the forward pass; multiplies the gradient in the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        return grads[0] * ctx.factor, None


def rescale_gradient(x: Tensor, factor: float) -> Tensor:
    """Return x unchanged, of any shape; its gradient will be multiplied by `factor`."""
    return cast(Tensor, _RescaleGradient.apply(x, factor))


class EarlyExitNetwork(nn.Module):
    """Ordered units and an exit head after some of them.

    A part of a network (`prefix`, `prefix_units`, `suffix`) is a network of the same class. Units and exits
    keep the whole network's numbers in every part, so the keys of a part's state dict are a subset of the whole's.

    An exit's position is the number of units before it, counted in the whole network.

    With `recurrent`, the exits' heads make tokens and this module, which all parts with an exit hold, turns the tokens
    of all exits so far into logits (see `common.networks.recurrent`).
    """

    def __init__(
        self,
        units: Mapping[int, nn.Module],
        exits: Mapping[int, ExitHead],
        architecture: Architecture,
        recurrent: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.units = nn.ModuleDict({str(index): units[index] for index in sorted(units)})
        self.exits = nn.ModuleDict({str(position): exits[position] for position in sorted(exits)})
        self.recurrent = recurrent
        self.architecture = architecture
        self.start = min(units)  # position where x enters this part: 0 in a prefix, the cut in a suffix
        self.end = max(units) + 1  # position after this part's last unit
        self.exit_positions: tuple[int, ...] = tuple(sorted(exits))

    @property
    def tier_positions(self) -> tuple[int, ...]:
        """Units of each depth tier of the whole: tier k, from 1, has the first tier_positions[k - 1] units."""
        return self.architecture.tier_positions

    @property
    def num_classes(self) -> int:
        """Length of a logit vector."""
        return self.architecture.num_classes

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of the whole network's input without the batch: (C, H, W), or (L,) of a text's token ids."""
        return self.architecture.input_shape

    @property
    def vocabulary(self) -> int:
        """Number of token ids if the network takes texts, else 0."""
        return self.architecture.vocabulary

    @property
    def latent_unit(self) -> int:
        """The unit before which a latent enters."""
        return self.architecture.latent_unit

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one latent, without the batch."""
        return self.architecture.latent_shape

    @property
    def ensemble(self) -> float:
        """0: logits are each exit's own z_e. Above 0: F_1 = z_1, F_e = z_e + ensemble * stopgrad(F_{e-1})."""
        return self.architecture.ensemble

    def example(self, batch: int) -> Tensor:
        """Return blank inputs on the CPU: zeros (B, C, H, W), or texts (B, L) of one repeated token."""
        shape = (batch, *self.input_shape)
        return torch.ones(shape, dtype=torch.int64) if self.vocabulary else torch.zeros(shape)

    def forward(self, x: Tensor, carried: Tensor | None = None) -> list[Tensor]:
        """Return the logits (B, classes) of all exits of this part, shallow to deep (see forward_exits)."""
        return self.forward_exits(x, carried=carried).logits

    def forward_exits(
        self,
        x: Tensor,
        *,
        latent: bool = False,
        rescale: Rescale = "none",
        carried: Tensor | None = None,
    ) -> ExitOutputs:
        """Run this part once and return the outputs of all its exits.

        Args:
            x: (B, C, H, W) or token ids (B, L), in a suffix the features at its cut; with `latent` a batch of latents.
            latent: x enters before unit `latent_unit`; only exits on positions from there on give outputs.
            rescale: how gradients are weighed where exit e (from 0) of E branches off. "boost": 1/(E-e) on the
                way back into the shared trunk and E-e-1 on the trunk's branch, so that every exit reaches
                the first block group with 1/E (BoostNet, Yu et al., AAAI 2023). "legacy": without the second
                factor, as DarkDistill's released ViT does (1/4, 1/12, 1/24, 1/24 with 4 exits).
            carried: in a suffix of an ensemble or of a network with recurrent exits: what the exits before it carry.

        Raises:
            ValueError: a latent cannot enter this part.
        """
        start = self.latent_unit if latent else self.start
        if not self.start <= start <= self.end:
            raise ValueError(f"a latent enters before unit {start}, which is not in this part")
        exits = [position for position in self.exit_positions if position >= start]
        logits: list[Tensor] = []
        features: list[Tensor] = []
        trunk = x
        for position, unit in self._walk(start):
            trunk = x = x if unit is None else unit(x)
            if position not in exits:
                continue
            later = len(exits) - len(logits) - 1
            if rescale != "none":
                x = rescale_gradient(x, 1 / (later + 1))
            output = self.exit_at(position, x, carried)
            carried = output.carried
            features.append(output.feature)
            logits.append(output.logits)
            if rescale == "boost":
                x = rescale_gradient(x, later)
        return ExitOutputs(logits, features, trunk, carried)

    def exit_at(self, position: int, x: Tensor, carried: Tensor | None = None) -> ExitOutput:
        """Return the outputs of one exit for the tensor x after `position` units; `carried` of the exit before it."""
        head = self.head(position)
        feature = head.pooled(x)
        carried = self._output(head(feature), carried)
        logits = carried if self.recurrent is None else cast(Tensor, self.recurrent(carried))
        return ExitOutput(logits, feature, carried)

    def head(self, position: int) -> ExitHead:
        """Return the head of the exit after `position` units; raises `KeyError` where this part has none."""
        return cast(ExitHead, self.exits[str(position)])

    def features_at(self, x: Tensor, cut: int) -> Tensor:
        """Return the tensor after `cut` units of the whole network.

        Raises:
            UserError: the cut is not in this part.
        """
        self._check_cut(cut, self.start + 1, self.end)
        for position, unit in self._walk(self.start):
            x = x if unit is None else unit(x)
            if position == cut:
                break
        return x

    @torch.no_grad()
    def infer(self, x: Tensor, leaves: Leaves, *, carried: Tensor | None = None) -> Inference:
        """Run early-exit inference, which stops computing for samples that have left. Call it in eval mode.

        Args:
            x: (B, C, H, W) or token ids (B, L), in a suffix the features at its cut.
            leaves: (exit index from 0, logits (b, classes) of the remaining samples) -> bool (b,), which leave.
                It is not called at the last exit of this part, where all remaining samples leave.
            carried: as in `forward_exits`.
        """
        exits = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        logits: Tensor | None = None
        for left in self.leave(x, leaves, carried=carried):
            logits = left.logits.new_zeros(len(exits), self.num_classes) if logits is None else logits
            logits[left.rows] = left.logits
            exits[left.rows] = left.exit
        if logits is None:
            raise ValueError("this part has no exit")
        return Inference(logits, exits)

    @torch.no_grad()
    def leave(self, x: Tensor, leaves: Leaves, *, carried: Tensor | None = None) -> Iterator[Left]:
        """Yield the samples that leave at each exit, shallow to deep, possibly none; takes what `infer` takes.

        A unit runs only when the caller asks for the next exit. The last yield is where the last sample leaves.
        """
        rows = torch.arange(len(x), device=x.device)
        for position, unit in self._walk(self.start):
            x = x if unit is None else unit(x)
            if position not in self.exit_positions:
                continue
            index = self.exit_positions.index(position)
            output = self.exit_at(position, x, carried)
            last = index == len(self.exit_positions) - 1
            gone = torch.ones_like(rows, dtype=torch.bool) if last else leaves(index, output.logits)
            yield Left(index, rows[gone], output.logits[gone])
            stay = ~gone
            rows, x, carried = rows[stay], x[stay], output.carried[stay]
            if len(rows) == 0:
                break

    def prefix(self, depth: int) -> "EarlyExitNetwork":
        """Return a copy of the units and exits of tier `depth` (from 1), which a device of this tier trains.

        Raises:
            UserError: the network does not have this tier.
        """
        if not 1 <= depth <= len(self.tier_positions):
            raise UserError(f"depth is {depth}, but this network has the tiers 1..{len(self.tier_positions)}")
        return self.prefix_units(self.tier_positions[depth - 1], exit_head=False)

    def prefix_units(self, cut: int, *, exit_head: bool = True) -> "EarlyExitNetwork":
        """Return a copy of the units before `cut` and the exits on them.

        With `exit_head` the copy also has an exit at the cut itself, a fresh one if the network has none there.

        Raises:
            UserError: the cut is not in this part.
        """
        self._check_cut(cut, self.start + 1, self.end)
        part = self._part(self.start, cut, [position for position in self.exit_positions if position <= cut])
        if not exit_head or cut in part.exit_positions:
            return part
        like = next(part.parameters(), None)
        head = self.architecture.new_head(cut).to(like)
        exits = {position: part.head(position) for position in part.exit_positions}
        units = {int(index): unit for index, unit in part.units.items()}
        recurrent = copy.deepcopy(self.recurrent)
        return EarlyExitNetwork(units, {**exits, cut: head}, self.architecture, recurrent).train(self.training)

    def suffix(self, cut: int) -> "EarlyExitNetwork":
        """Return a copy of the units from `cut` on and the exits after them, which a server holds.

        For `features_at(x, cut)` it returns the whole network's logits bit for bit (in an ensemble, or with recurrent
        exits: with what the exits before the cut carry, `forward_exits(x).carried` of the prefix).

        Raises:
            UserError: one of the two sides would have no unit.
        """
        self._check_cut(cut, self.start + 1, self.end - 1)
        return self._part(cut, self.end, [position for position in self.exit_positions if position > cut])

    def segments(self) -> list["EarlyExitNetwork"]:
        """Return copies of the parts from exit to exit, each with one exit, at its end.

        One after another they are this network: each takes the trunk's tensor of the one before, and in an ensemble
        that one's logits as `carried`.

        Raises:
            ValueError: units follow the last exit.
        """
        if not self.exit_positions or self.exit_positions[-1] != self.end:
            raise ValueError("the last exit does not come after all units")
        starts = (self.start, *self.exit_positions[:-1])
        return [self._part(start, end, [end]) for start, end in zip(starts, self.exit_positions, strict=True)]

    def _part(self, start: int, end: int, exits: list[int]) -> "EarlyExitNetwork":
        part = type(self)(
            {index: copy.deepcopy(self.units[str(index)]) for index in range(start, end)},
            {position: copy.deepcopy(self.head(position)) for position in exits},
            self.architecture,
            copy.deepcopy(self.recurrent) if exits else None,
        )
        return part.train(self.training)

    def _walk(self, start: int) -> Iterator[tuple[int, nn.Module | None]]:
        """Yield each position from `start` on with the unit before it, None for `start` itself."""
        yield start, None
        for index in range(start, self.end):
            yield index + 1, self.units[str(index)]

    def _output(self, output: Tensor, carried: Tensor | None) -> Tensor:
        """Return what an exit carries on, of its head's output and of what the exit before it carried.

        In an ensemble this is F_e of z_e and F_{e-1} (BoostNet, Yu et al., AAAI 2023), all (B, classes); of recurrent
        exits the tokens so far (B, exits, d) of one more token (B, d).
        """
        if self.recurrent is not None:
            token = output.unsqueeze(1)
            return token if carried is None else torch.cat([carried, token], dim=1)
        if carried is None or self.ensemble == 0.0:
            return output
        return output + self.ensemble * carried.detach()

    def _check_cut(self, cut: int, lowest: int, highest: int) -> None:
        if not lowest <= cut <= highest:
            raise UserError(f"cut is {cut}, must be one of {lowest}..{highest}")
