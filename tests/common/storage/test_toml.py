"""Values as TOML."""

import tomllib

from common.storage.toml import toml_lines


def test_toml_has_every_value_again() -> None:
    values = {"a": 'say "é" \\ 🌱\n', "b-c": 1, "d": 0.1, "e": 1e-05, "f": True}
    assert tomllib.loads(toml_lines(values)) == values
