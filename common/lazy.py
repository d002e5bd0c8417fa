"""Names of a package whose modules are imported when a name is first used: some import torch, which takes seconds."""

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any


def lazily(package: str, modules: Sequence[str], names: Sequence[str]) -> Callable[[str], Any]:
    """Return the `__getattr__` (PEP 562) of a package whose `names` come from its `modules`, tried in this order.

    A name must not be a module's too: importing the module sets the package's attribute.
    """

    def attribute(name: str) -> Any:
        if name in names:
            for module in modules:
                found = import_module(f"{package}.{module}")
                if hasattr(found, name):
                    return getattr(found, name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return attribute
