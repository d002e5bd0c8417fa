"""Values as TOML, which Flower's configuration and a run's own are in; Python only reads it."""

import json
from collections.abc import Mapping


def toml_lines(values: Mapping[str, object]) -> str:
    """Return a line for each key, with a text, a number, or true or false."""
    # JSON's are TOML's, but for characters that it would escape as two halves, such as an emoji
    return "".join(f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in values.items())
