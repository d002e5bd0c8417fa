"""What a study runs: variants of a method x points of a grid x seeds, from a TOML file or the command line.

    name = "accuracy"                    # of its folder; empty: the file's own
    preset = "demo"                      # where the settings start
    methods = ["eefl", "parallel"]       # or variants below; the first one is the base of all gains
    seeds = [1, 2, 3]

    [settings]                           # of all cells
    data.name = "cifar10"

    [grid]                               # each value of a key with each value of the others
    data.alpha = [1000.0, 0.1]

    [variants.parallel]                  # a method with settings of its own
    run.strategy = "darkdistill"
    darkdistill.variant = "parallel"

A cell is one run. A value `cell:NAME` stands for the run folder of the variant NAME at the same point and seed, which
then runs first.
"""

import itertools
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import UserError
from server.commands.overrides import absolute
from server.commands.preset import flat, joined, read_preset

if TYPE_CHECKING:  # its import takes a fifth of a second, which `--help` does not need
    from common.config import Value

KINDS: Mapping[str, tuple[type, str]] = {
    "name": (str, "a text"), "preset": (str, "a text"), "methods": (list, "a list"), "seeds": (list, "a list"),
    "settings": (dict, "a table"), "grid": (dict, "a table"), "variants": (dict, "a table"),
}  # fmt: skip
OWN = ("run.name", "run.root", "run.seed", "run.resume", "run.commit")  # which a study sets itself
METHOD = "run.strategy"
CELL = "cell:"  # begins a value that stands for another cell's folder
UNFIT = re.compile(r"[^A-Za-z0-9._-]+")  # characters that a run's name cannot have
LONGEST = 80  # characters of a run's name


@dataclass(frozen=True)
class Cell:
    """One run of a study."""

    variant: str
    point: "Mapping[str, Value]"  # the grid's keys with this cell's values
    seed: int
    values: "Mapping[str, Value]"  # its configuration
    folder: Path
    needs: tuple[str, ...] = ()  # variants of the same point and seed that run first

    @property
    def heading(self) -> str:
        """Its point of the grid; "" without a grid."""
        return ", ".join(f"{key} {value}" for key, value in self.point.items())

    @property
    def label(self) -> str:
        """What it is, but for the seed: its variant and its point of the grid."""
        return f"{self.variant}, {self.heading}" if self.point else self.variant


@dataclass(frozen=True)
class Study:
    """A study as it was asked for."""

    name: str
    variants: "Mapping[str, Mapping[str, Value]]"  # by name, in the order of the table
    seeds: Sequence[int] = (1,)
    settings: "Mapping[str, Value]" = field(default_factory=dict)
    grid: "Mapping[str, Sequence[Value]]" = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raise `UserError` for what cannot be run."""
        if not self.name or UNFIT.search(self.name):
            raise UserError(f"the study's name is {self.name!r}, must be letters, digits, '.', '_' and '-'")
        if not self.variants:
            raise UserError('a study needs methods: give --methods eefl,darkdistill, or methods = ["eefl"] in its file')
        if len(set(self.seeds)) < len(self.seeds) or not self.seeds:
            raise UserError(f"the study's seeds are {list(self.seeds)}: give at least one, and each once")
        for place, values in {"the settings": self.settings, "the grid": self.grid, **self.variants}.items():
            if found := [key for key in OWN if key in values]:
                raise UserError(f"a study sets {', '.join(found)} itself: remove it from {place}")
        for place, keys in {"the settings": self.settings, "the grid": self.grid}.items():
            if METHOD in keys:
                raise UserError(f"a study has its methods from --methods or its file: remove {METHOD} from {place}")
        for variant, values in self.variants.items():
            if twice := [key for key in values if key in self.grid]:
                raise UserError(f"{twice[0]} is in the grid and in the variant {variant!r}: remove it from one of them")
        for key, chosen in self.grid.items():
            if not chosen or len(set(map(str, chosen))) < len(chosen):
                raise UserError(f"the grid's {key} is {list(chosen)}: give at least one value, and each once")

    @property
    def strategies(self) -> list[str]:
        """The methods of all variants."""
        return [str(values[METHOD]) for values in self.variants.values()]

    def refuse_overridden(self, keys: Iterable[str]) -> None:
        """Raise `UserError` if the grid or a variant replaces one of these keys, which were set for all runs."""
        places = {"the grid": self.grid} | {f"the variant {name!r}": values for name, values in self.variants.items()}
        for key, (place, values) in itertools.product(keys, places.items()):
            if key in values:
                raise UserError(f"-c {key} is replaced by the value in {place}: remove it from one of them")

    def cells(self, folder: Path) -> list[Cell]:
        """Return all cells, whose runs lie in `folder`: the first seed's first, so that early results are comparable.

        Raises `UserError` for cells that would have the same folder, or that need an unknown or a later one.
        """
        cells = list(self._cells(folder))
        names: dict[Path, Cell] = {}
        for cell in cells:
            if other := names.get(cell.folder):
                raise UserError(f"{cell.label} and {other.label} would both run as {cell.folder.name}: rename one")
            names[cell.folder] = cell
        return cells

    def _cells(self, folder: Path) -> "Iterator[Cell]":
        order = list(self.variants)
        for seed, chosen in itertools.product(self.seeds, itertools.product(*self.grid.values())):
            point = dict(zip(self.grid, chosen, strict=True))
            for place, (variant, own) in enumerate(self.variants.items()):
                values = {**self.settings, **point, **own}
                needs = {key: str(v).removeprefix(CELL) for key, v in values.items() if str(v).startswith(CELL)}
                if unknown := [name for name in needs.values() if name not in order[:place]]:
                    raise UserError(
                        f"{variant} needs the cell {unknown[0]}, which does not run before it: list {unknown[0]!r} "
                        "before it in the study's methods"
                    )
                values |= {key: str(folder / _name(other, point, seed)) for key, other in needs.items()}
                name = _name(variant, point, seed)
                values |= {"run.name": name, "run.root": str(folder), "run.seed": seed}
                yield Cell(variant, point, seed, absolute(values), folder / name, tuple(needs.values()))


def read_study(path: Path) -> dict[str, Any]:
    """Return a study file's entries: `settings`, `grid` and `variants` flat, the rest as it is.

    Raises `UserError` in one sentence.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"the study {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"the study {path} is not valid TOML: {error}") from error
    if unknown := sorted(content.keys() - KINDS.keys()):
        raise UserError(f"{path}: {unknown[0]!r} is no entry of a study: choose from {', '.join(KINDS)}")
    try:
        _check_kinds(content)
        preset = read_preset(content["preset"]) if "preset" in content else {}
        preset.pop(METHOD, None)  # the study has its own methods
        return {
            "name": content.get("name", path.stem),
            "methods": content.get("methods", list(content.get("variants", {}))),
            "seeds": content.get("seeds", [1]),
            "settings": preset | flat(content.get("settings", {})),
            "grid": _grid(content.get("grid", {})),
            "variants": {name: flat(table) for name, table in content.get("variants", {}).items()},
        }
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error


def named_variants(
    methods: Sequence[str], variants: "Mapping[str, Mapping[str, Value]]"
) -> "dict[str, dict[str, Value]]":
    """Return the chosen variants with their methods; a name that is no variant is a method's."""
    if "" in methods or len(set(methods)) < len(methods):
        raise UserError(f"the methods {', '.join(methods)}: name each method once")
    if unused := [name for name in variants if name not in methods]:
        raise UserError(f"the study's methods leave out its variant {unused[0]!r}: list it, or remove it")
    return {name: {METHOD: name, **variants.get(name, {})} for name in methods}


def grid_options(texts: Iterable[str]) -> dict[str, list[str]]:
    """Return keys and values of several `--grid KEY=VALUE,VALUE`; raises `UserError`."""
    grid: dict[str, list[str]] = {}
    for text in texts:
        key, found, values = (part.strip() for part in text.partition("="))
        if not found or not key:
            raise UserError(f"--grid {text}: write KEY=VALUE,VALUE, such as --grid data.alpha=0.1,1000")
        if key in grid:
            raise UserError(f"--grid {key} is given twice: write all its values in one, as KEY=VALUE,VALUE")
        grid[key] = [value.strip() for value in values.split(",")]
    return grid


def _name(variant: str, point: "Mapping[str, Value]", seed: int) -> str:
    """Return the name of a cell's run."""
    parts = [variant, *(f"{key.partition('.')[2]}-{value}" for key, value in point.items())]
    name = UNFIT.sub("_", "-".join(parts)).lstrip("._-") or "cell"
    ending = f"-s{seed}"
    return name[: LONGEST - len(ending)] + ending


def _check_kinds(content: Mapping[str, Any]) -> None:
    for key, value in content.items():
        kind, words = KINDS[key]
        if not isinstance(value, kind):
            raise ValueError(f"{key} is {value!r}, must be {words}")
    if wrong := [seed for seed in content.get("seeds", []) if isinstance(seed, bool) or not isinstance(seed, int)]:
        raise ValueError(f"seeds has {wrong[0]!r}, must be whole numbers")
    if wrong := [name for name in content.get("methods", []) if not isinstance(name, str)]:
        raise ValueError(f"methods has {wrong[0]!r}, must be names")
    if wrong := [name for name, table in content.get("variants", {}).items() if not isinstance(table, dict)]:
        raise ValueError(f"variants.{wrong[0]} must be a table")


def _grid(tables: Mapping[str, Any]) -> "dict[str, list[Value]]":
    """Return the values of each key; raises `ValueError` for a key without a list."""
    found: dict[str, list[Value]] = {}
    for section, table in tables.items():
        for name, values in table.items() if isinstance(table, dict) else [("", table)]:
            key = f"{section}.{name}" if name else section
            if "." not in key or not isinstance(values, list):
                raise ValueError(f"grid.{key} is {values!r}, must be a list of values, such as data.alpha = [0.1, 1.0]")
            found[key] = [joined(value) if isinstance(value, list) else value for value in values]
    return found
