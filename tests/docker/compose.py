"""Reads the files in `docker` as Compose and Docker do: merged, interpolated services and Dockerfile instructions."""

import os
import re
from collections.abc import Mapping
from typing import Any

import yaml

from common.flower.processes import PROJECT

DOCKER = PROJECT / "docker"
REPLACED = ("command", "entrypoint", "test")  # lists that a later file replaces; it extends all others
VARIABLE = re.compile(r"\$\{(\w+):?-([^}]*)\}")


class Override(list[Any]):
    """A list that replaces the earlier file's list."""


class Loader(yaml.SafeLoader):
    """Reads YAML with Compose's tags."""


Loader.add_constructor("!override", lambda loader, node: Override(loader.construct_sequence(node, deep=True)))
Loader.add_constructor("!reset", lambda loader, node: Override())


def read(*names: str, env: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """Return the content of compose files, merged in order as `docker compose -f A -f B` does."""
    content: dict[str, Any] = {}
    for name in names:
        text = VARIABLE.sub(lambda found: env.get(found[1]) or found[2], (DOCKER / name).read_text())
        content = merged(content, yaml.load(text, Loader))
    return content


def merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Merge as the Compose Specification says: merge mappings by key, append lists, replace commands."""
    result = dict(old)
    for key, value in new.items():
        if isinstance(value, dict) and isinstance(old.get(key), dict):
            result[key] = merged(old[key], value)
        elif isinstance(value, list) and key in old and key not in REPLACED and not isinstance(value, Override):
            result[key] = [*old[key], *value]
        else:
            result[key] = value
    return result


def copied() -> set[str]:
    """Return the files and folders of the project that the Dockerfile copies."""
    lines = (DOCKER / "Dockerfile").read_text().splitlines()
    copies = [line.split()[1:-1] for line in lines if line.startswith("COPY ") and "--from" not in line]
    return {name for names in copies for name in names}
