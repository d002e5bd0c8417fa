"""Optional packages, and exceptions of other packages as one line for the user."""

import importlib
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
            f"{purpose} needs the package {package!r}, which is not installed: pip install earlybloom[simulation]"
        ) from error


def one_line(error: BaseException) -> str:
    """Return an exception's text on a single line of bounded length."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
