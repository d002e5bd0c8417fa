"""Presets: TOML files with a table for each section of the configuration."""

import datetime
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import UserError

if TYPE_CHECKING:  # its import takes a fifth of a second, which `--help` does not need
    from common.config import Value

PRESETS = Path(__file__).parent / "presets"


def preset_names() -> list[str]:
    """Return the names of all presets."""
    return sorted(path.stem for path in PRESETS.glob("*.toml"))


def read_preset(name: str) -> "dict[str, Value]":
    """Return the flat configuration of a preset, or of a TOML file; raises `UserError` in one sentence."""
    path = next((p for p in (PRESETS / f"{name}.toml", Path(name)) if p.is_file()), None)
    if path is None:
        from common.settings import like

        file = "does not exist" if Path(name).suffix == ".toml" else "is unknown"
        problem = "is a folder" if Path(name).is_dir() else file
        names = preset_names()
        raise UserError(
            f"--preset {name} {problem}: choose one of {', '.join(names)}, or a TOML file{like(name, names)}"
        )
    try:
        content = path.read_bytes()
        tables = tomllib.loads(content.decode("utf-8-sig"))
    except OSError as error:
        raise UserError(f"--preset {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"--preset {path}: line {line} is not UTF-8: save the file in that encoding") from error
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"--preset {path} is not valid TOML: {error}") from error
    try:
        return flat(tables)
    except ValueError as error:
        raise UserError(f"--preset {path}: {error}") from error


def joined(items: list[Any]) -> str:
    """Return a list as Flower's configuration holds it; raises `ValueError` for items that it cannot hold."""
    if any(isinstance(item, bool) or not isinstance(item, str | int | float) or "," in str(item) for item in items):
        raise ValueError(f"{items} is not a list of numbers or of words without commas")
    return ",".join(map(str, items))


def flat(tables: Mapping[str, Any]) -> "dict[str, Value]":
    """Return the keys of a table per section; raises `ValueError` for what is no value of a key."""
    values: dict[str, Value] = {}
    for section, table in tables.items():
        if "." in section and not isinstance(table, dict):  # "train.lr" = 0.1
            values[section] = _plain(section, table)
        elif not isinstance(table, dict):
            raise ValueError(f"{section!r} stands outside a section: write it below a line such as [train]")
        else:
            values |= {f"{section}.{key}": _plain(f"{section}.{key}", value) for key, value in table.items()}
    return values


def _plain(key: str, value: Any) -> "Value":
    if isinstance(value, list):
        try:
            return joined(value)
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from error
    if isinstance(value, dict):
        raise ValueError(f"{key} is a table, must be a text, a number, true or false, or a list")
    if isinstance(value, datetime.date | datetime.time):  # a name that looks like a date
        return str(value)
    return value
