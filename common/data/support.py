"""Optional packages, and what messages to the user are made of: exceptions and names on one line."""

import importlib
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from common.errors import UserError

_LONGEST = 200


def require(module: str, purpose: str) -> ModuleType:
    """Import a package of the `simulation` extra, which a device's base install lacks.

    Raises `UserError` that names what to install.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise UserError(
            f"{purpose} needs the package {package!r}, which is not installed: pip install -e '.[simulation]'"
        ) from error


def package_folder(package: str, purpose: str, extra: str = "simulation") -> Path:
    """Return the folder of a package of this extra, without running any of its code.

    Raises `UserError` that names what to install.
    """
    found = find_spec(package)
    if found is None or found.origin is None:
        raise UserError(f"{purpose} needs the package {package!r}, which is not installed: pip install -e '.[{extra}]'")
    return Path(found.origin).parent


def one_line(error: BaseException) -> str:
    """Return an exception's text on a single line of bounded length."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


def printable(text: str) -> str:
    """Return a name with "?" for line breaks, bytes that are no text, and whatever else a terminal cannot show."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def counted(number: int, noun: str) -> str:
    """Return "1 image" or "2 images"."""
    return f"{number} {noun}" + "s" * (number != 1)


def listed(names: Sequence[str], most: int = 10) -> str:
    """Return names as one text; all after the first `most` are only counted."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(printable(name) for name in names[:most]) + more
