"""Read the configuration from the command line: `-c KEY=VALUE`, on top of a preset."""

import argparse
import time
import tomllib
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.flower.processes import PROJECT

PRESETS = Path(__file__).parent / "presets"
PATHS = ("data.root", "run.root", "clients.store", "distree.teacher")  # relative to the current folder as typed


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Add the options that `read_overrides` reads."""
    parser.add_argument(
        "-c", dest="config", action="append", default=[], metavar="KEY=VALUE",
        help="set a configuration key, such as train.lr=0.1; may be repeated",
    )  # fmt: skip
    parser.add_argument("--preset", help=f"one of {', '.join(_presets())}, or a TOML file")


def read_overrides(options: argparse.Namespace) -> dict[str, Any]:
    """Return the preset's values, replaced by those of `-c` where both set a key; raises `UserError`."""
    values, known = _preset(options.preset) if options.preset else {}, _defaults()
    for pair in options.config:
        key, found, text = (part.strip() for part in pair.partition("="))
        if not found:
            raise UserError(f"-c {pair}: write KEY=VALUE, such as -c train.lr=0.1")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = None
        # a bare word is text; so are a name that looks like a date, and a number where the key takes text
        wanted = (str,) if isinstance(known.get(key), str) else (str, int, float)
        values[key] = value if isinstance(value, wanted) else text
    for key in PATHS:
        if values.get(key):
            values[key] = str(Path(values[key]).absolute())
    name, _, folder = str(values.get("distree.public", "")).partition(":")
    if folder:
        values["distree.public"] = f"{name}:{Path(folder).absolute()}"
    return values


def refuse_unread(options: argparse.Namespace, read: Set[str], options_for: Mapping[str, str]) -> None:
    """Raise `UserError` if `-c` sets keys that a verb does not read; `options_for`: key -> the verb's option for it.

    A preset may set other keys: it serves several verbs.
    """
    given = dict.fromkeys(pair.partition("=")[0].strip() for pair in options.config)
    found = [f"{key} (use {options_for[key]})" if key in options_for else key for key in given if key not in read]
    if found:
        raise UserError(f"`server {options.verb}` does not read {', '.join(found)}: remove what has no effect")


def add_run(parser: argparse.ArgumentParser) -> None:
    """Add the options that `read_run` reads."""
    add_overrides(parser)
    parser.add_argument("--resume", metavar="FOLDER", help="continue this run from its last complete round")


def read_run(options: argparse.Namespace) -> dict[str, Any]:
    """Return the configuration of a new run, with a name, or of a resumed one; raises `UserError`."""
    values = read_overrides(options)
    if not options.resume:
        values.setdefault("run.name", f"{values.get('run.strategy', 'run')}-{time.strftime('%Y%m%d-%H%M%S')}")
        return values
    if values:
        raise UserError("--resume keeps the configuration stored in the run's folder: remove -c and --preset")
    return {"run.resume": str(Path(options.resume).absolute())}


def _presets() -> list[str]:
    """Return the names of all presets."""
    return sorted(path.stem for path in PRESETS.glob("*.toml"))


def _preset(name: str) -> dict[str, Any]:
    path = next((p for p in (PRESETS / f"{name}.toml", Path(name)) if p.is_file()), None)
    if path is None:
        raise UserError(f"--preset {name} is unknown: choose one of {', '.join(_presets())}, or give a TOML file")
    return _flat(tomllib.loads(path.read_text()))


def _defaults() -> dict[str, Any]:
    """Return every key with its default as the app declares them: the schema itself takes seconds to import."""
    app = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    return _flat(app["config"])


def _flat(tables: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {f"{section}.{key}": value for section, table in tables.items() for key, value in table.items()}
