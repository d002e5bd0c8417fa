"""Functions from outside this app, which a configuration names as `package.module:function`.

The name travels from the server to the clients, or in a model's file; these functions' code never does. A process
imports only packages that the environment variable EARLYBLOOM_PLUGINS allows, where the process starts: a name out of a
file, or of a run, must not choose what is imported. A command on the server's machine allows what is typed. This is no
guard against the server itself: Flower installs the app that it sends, and a device runs that.
"""

import importlib
import os
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from common.errors import UserError

VARIABLE = "EARLYBLOOM_PLUGINS"  # packages or modules, with commas between them
REFERENCE = "package.module:function"
_PATTERN = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


class PluginError(UserError):
    """A named function cannot be had in this process."""


def is_reference(name: str) -> bool:
    """Return whether a name is a function's, as `package.module:function`."""
    return _PATTERN.fullmatch(name) is not None


def allow(names: Iterable[str]) -> None:
    """Allow this process, and those that it starts, the packages of the references among these names."""
    packages = [name.partition(":")[0].partition(".")[0] for name in names if is_reference(name)]
    if packages:
        os.environ[VARIABLE] = ",".join(dict.fromkeys([*allowed(), *packages]))


def allowed() -> list[str]:
    """Return the packages and modules that this process may import."""
    return [entry.strip() for entry in os.environ.get(VARIABLE, "").split(",") if entry.strip()]


def find(key: str, name: str, role: str = "this process") -> Callable[..., Any]:
    """Import and return the function that a configuration's key names.

    Raises `PluginError`, which names the role of this process, if the module may not or cannot be imported, or has no
    such function.
    """
    path, _, function = name.partition(":")
    package = path.partition(".")[0]
    if not _is_allowed(path):
        raise PluginError(
            f"{role} may not import {path!r} for {key} {name!r}: if its owner trusts that package, set the environment "
            f"variable {VARIABLE}={package} where {role} starts"
        )
    try:
        module = importlib.import_module(path)
    except Exception as error:  # whatever the module raises
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise PluginError(
            f"{role} cannot import {path!r} for {key} {name!r} ({reason}): install the package in its environment, or "
            "put the absolute path of the package's folder on its PYTHONPATH"
        ) from error
    found = getattr(module, function, None)
    if found is None:
        raise PluginError(f"{key} is {name!r}, but {path} has no {function!r} in {role} ({module.__file__})")
    if not callable(found):
        raise PluginError(f"{key} is {name!r}, but {function!r} is {type(found).__name__}, must be a function")
    if not _is_allowed(home := str(getattr(found, "__module__", ""))):  # what a module imports is not its own
        raise PluginError(f"{key} is {name!r}, but {function!r} comes from {home!r}: name a function of {package!r}")
    checked: Callable[..., Any] = found
    return checked


def call(key: str, name: str, argument: Any) -> Any:
    """Return what the function that a configuration's key names makes of the argument.

    Raises `UserError` if the function cannot be had, see `find`, or fails.
    """
    function = find(key, name)
    try:
        return function(argument)
    except UserError:
        raise
    except Exception as error:  # whatever the function raises
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{key} {name!r} fails: {reason}") from error


def _is_allowed(module: str) -> bool:
    return any(module == entry or module.startswith(f"{entry}.") for entry in allowed())


def check(names: Mapping[str, str], role: str) -> None:
    """Import what these keys name if they name functions; raises `PluginError`."""
    for key, name in names.items():
        if is_reference(name):
            find(key, name, role)
