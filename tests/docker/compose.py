"""What Compose and Docker read from the files in `docker`: services merged and interpolated, instructions as words."""

import json
import os
import re
from collections.abc import Mapping
from typing import Any

import yaml

from common.flower.processes import PROJECT

DOCKER = PROJECT / "docker"
REPLACED = ("command", "entrypoint", "test")  # of all lists these only; others grow
VARIABLE = re.compile(r"\$\{(\w+):-([^}]*)\}")


class Override(list[Any]):
    """A list that takes the earlier file's place."""


class Loader(yaml.SafeLoader):
    """Reads Compose's own tags, too."""


Loader.add_constructor("!override", lambda loader, node: Override(loader.construct_sequence(node, deep=True)))
Loader.add_constructor("!reset", lambda loader, node: Override())


def read(*names: str, env: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """Return the content of compose files, later ones over earlier ones, as `docker compose -f A -f B` takes them."""
    whole: dict[str, Any] = {}
    for name in names:
        text = VARIABLE.sub(lambda found: env.get(found[1]) or found[2], (DOCKER / name).read_text())
        whole = merged(whole, yaml.load(text, Loader))
    return whole


def merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Merge as the Compose Specification says: mappings by key, lists by appending, commands by replacing."""
    result = dict(old)
    for key, value in new.items():
        if isinstance(value, dict) and isinstance(old.get(key), dict):
            result[key] = merged(old[key], value)
        elif isinstance(value, list) and key in old and key not in REPLACED and not isinstance(value, Override):
            result[key] = [*old[key], *value]
        else:
            result[key] = value
    return result


def instructions(image: str) -> list[tuple[str, str]]:
    """Return a Dockerfile's instructions and what follows each; `image` is "client" or "server"."""
    text = re.sub(r"\\\n", " ", (DOCKER / f"{image}.Dockerfile").read_text())
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line and not line.startswith("#")]
    return [(name, rest) for name, rest in lines]


def words(image: str, instruction: str) -> list[str]:
    """Return the list of words of an instruction: ENTRYPOINT's, CMD's or HEALTHCHECK's."""
    (rest,) = [rest for name, rest in instructions(image) if name == instruction]
    values: list[str] = json.loads(rest[rest.index("[") :])
    return values


def copied(image: str) -> list[str]:
    """Return the files and folders that an image gets from the project."""
    return [word for name, rest in instructions(image) if name == "COPY" for word in rest.split()[:-1]]
