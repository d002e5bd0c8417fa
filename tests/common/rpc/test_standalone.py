"""A service that no run announces: its options, and the files that they make."""

import argparse
from pathlib import Path

import pytest

from common.errors import UserError
from common.rpc import standalone


def read(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    standalone.add_options(parser)
    return parser.parse_args(arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((":9201",), "':9201' is not an address"),
        (("9201",), "'9201' is not an address"),
        (("192.0.2.1:", "--name", "here"), "is not an address"),
        (("0.0.0.0:0",), "give the --name by which others reach it"),
    ],
)
def test_invalid_address_makes_no_secrets(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        standalone.access(read("--address", *arguments), tmp_path, "token")
    assert not list(tmp_path.iterdir())


def test_secrets_are_made_once_and_read_again(tmp_path: Path) -> None:
    first, again = (standalone.access(read("--address", "192.0.2.1:0"), tmp_path, "token") for _ in range(2))
    assert first == again
    assert (first.name, first.token_file, first.certificate_file) == (
        "192.0.2.1", tmp_path / "token", tmp_path / "certificate.pem",
    )  # fmt: skip
    assert standalone.access(read(), tmp_path, "token").certificate is None
