"""Read the configuration from the command line: `-c KEY=VALUE`, on top of a preset."""

import argparse
import tomllib
from collections.abc import Mapping, Set
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import UserError
from common.storage.run_files import default_name
from server.commands.preset import joined, preset_names, read_preset

if TYPE_CHECKING:  # pydantic's import takes a fifth of a second, which `--help` does not need
    from pydantic.fields import FieldInfo

    from common.config import Value

# relative to the current folder as typed
PATHS = (
    "data.root",
    "run.root",
    "run.resume",
    "clients.store",
    "clients.profiles",
    "distree.teacher",
    "network.pretrained",
)


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Add the options that `read_overrides` reads."""
    parser.add_argument(
        "-c", dest="config", action="append", default=[], metavar="KEY=VALUE",
        help="set a configuration key, such as train.lr=0.1; may be repeated, the last value of a key counts",
    )  # fmt: skip
    parser.add_argument("--preset", help=f"one of {', '.join(preset_names())}, or a TOML file")


def read_overrides(options: argparse.Namespace) -> "dict[str, Value]":
    """Return the preset's values, replaced by those of `-c` where both set a key; raises `UserError`.

    A value has the type that its key takes, where it can be read as such; nothing else is checked.
    """
    from common.config import fields_of
    from strategies.registry import all_settings

    values, known = read_preset(options.preset) if options.preset else {}, fields_of(all_settings())
    for pair in options.config:
        key, found, text = (part.strip() for part in pair.partition("="))
        if not found or not key:
            raise UserError(f"-c {pair}: write KEY=VALUE, such as -c train.lr=0.1")
        values[key] = _value(text, known.get(key))
    return absolute(values)


def read_common(options: argparse.Namespace) -> "dict[str, Value]":
    """Return what several methods have in common, as `read_overrides` does, without the method of a preset."""
    values = read_overrides(options)
    if "run.strategy" not in given_keys(options):
        values.pop("run.strategy", None)
    return values


def given_keys(options: argparse.Namespace) -> list[str]:
    """Return the keys that `-c` sets, each once."""
    return list(dict.fromkeys(pair.partition("=")[0].strip() for pair in options.config))


def typed(key: str, text: str) -> "Value":
    """Return a key's value from the command line with the type that the key takes, where it can be read as such."""
    from common.config import fields_of
    from strategies.registry import all_settings

    return _value(text, fields_of(all_settings()).get(key))


def absolute(values: "Mapping[str, Value]") -> "dict[str, Value]":
    """Return the values with paths that do not depend on the current folder."""
    changed = dict(values)
    for key in PATHS:
        if isinstance(text := changed.get(key), str) and text:
            changed[key] = _absolute(key, text)
    name, _, folder = str(changed.get("distree.public", "")).partition(":")
    if folder:
        changed["distree.public"] = f"{name}:{_absolute('', folder)}"
    return changed


def refuse_unread(options: argparse.Namespace, read: Set[str], options_for: Mapping[str, str]) -> None:
    """Raise `UserError` if `-c` sets keys that a verb does not read; `options_for`: key -> the verb's option for it.

    A preset may set other keys: it serves several verbs.
    """
    unread = [key for key in given_keys(options) if key not in read]
    found = [f"{key} (use {options_for[key]})" if key in options_for else key for key in unread]
    if found:
        raise UserError(f"`server {options.verb}` does not read {', '.join(found)}: remove what has no effect")


def add_run(parser: argparse.ArgumentParser) -> None:
    """Add the options that `read_run` reads."""
    add_overrides(parser)
    parser.add_argument("--resume", metavar="FOLDER", help="continue this run from its last complete round")


def read_run(options: argparse.Namespace) -> "dict[str, Value]":
    """Return the configuration of a new run, with a name, or of a resumed one; raises `UserError`."""
    from common.sections.general import RunSection

    values = read_overrides(options)
    folder = _absolute("", options.resume) if options.resume else values.pop("run.resume", "")
    if folder and values:
        raise UserError(f"--resume keeps the configuration stored in the run's folder: remove {', '.join(values)}")
    if folder:
        return {"run.resume": folder}
    if not values.get("run.name"):
        values["run.name"] = default_name(str(values.get("run.strategy", RunSection().strategy)))
    return values


def _value(text: str, field: "FieldInfo | None") -> "Value":
    """Return a typed value as its key takes it: a number, true or false, or text; what cannot be read stays text."""
    try:
        quoted = tomllib.loads(f"value = {text}")["value"] if text[:1] in ("'", '"', "[") else text
        text = joined(quoted) if isinstance(quoted, list) else str(quoted)
    except ValueError:  # of TOML too
        pass
    kind = field.annotation if field else str
    if kind is bool and text.lower() in ("true", "false"):
        return text.lower() == "true"
    for number in (int, float) if kind in (int, float) else ():
        try:
            return number(text)
        except ValueError:
            continue
    return text


def _absolute(key: str, text: str) -> str:
    try:
        path = Path(text).expanduser()
    except RuntimeError:  # ~ of an unknown user
        path = Path(text)
    if key == "network.pretrained" and not path.exists() and path.suffix != ".safetensors":
        return text  # a repository on the Hugging Face hub
    return str(path.absolute())
