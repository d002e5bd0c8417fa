"""`--preset`: names, files, and what is wrong with them in one sentence."""

from pathlib import Path

import pytest

from common.errors import UserError
from server.commands.preset import preset_names, read_preset


def written(folder: Path, content: str | bytes) -> str:
    file = folder / "mine.toml"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(file)


@pytest.mark.parametrize(
    ("content", "values"),
    [
        (b"\xef\xbb\xbf[run]\r\nrounds = 1\r\n", {"run.rounds": 1}),
        ("[network]\nexits = [2, 5]\n[objective]\nexit-weights = [0.5, 1]\n",
         {"network.exits": "2,5", "objective.exit-weights": "0.5,1"}),
        ('[data]\nclasses = ["box", "cross"]\n', {"data.classes": "box,cross"}),
        ("run.rounds = 2\ntrain.lr = 0.1\n", {"run.rounds": 2, "train.lr": 0.1}),
        ('"run.rounds" = 2\n', {"run.rounds": 2}),
        ("[run]\nname = 2025-01-31\n", {"run.name": "2025-01-31"}),
        ("", {}),
    ],
)  # fmt: skip
def test_files_are_read(content: str | bytes, values: dict[str, object], tmp_path: Path) -> None:
    assert read_preset(written(tmp_path, content)) == values


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[run]\nrounds = \n", "is not valid TOML: Invalid value (at line 2, column 10)"),
        ("[run]\nrounds = 1\n[run]\n", "line 3"),
        (b'[run]\nname = "caf\xe9"\n', "line 2 is not UTF-8: save the file in that encoding"),
        ("[run]\nrounds = 1\n".encode("utf-16"), "line 1 is not UTF-8"),
        ("rounds = 1\n", "'rounds' stands outside a section: write it below a line such as [train]"),
        ("[run.more]\nrounds = 1\n", "run.more is a table, must be a text, a number, true or false, or a list"),
        ("[network]\nexits = [[1], [2]]\n", "network.exits: [[1], [2]] is not a list of numbers"),
        ('[data]\nclasses = ["a,b", "c"]\n', "of words without commas"),
        ("[[run]]\nrounds = 1\n", "'run' stands outside a section"),
    ],
)
def test_mistakes_in_files_are_one_sentence(content: str | bytes, words: str, tmp_path: Path) -> None:
    name = written(tmp_path, content)
    with pytest.raises(UserError) as caught:
        read_preset(name)
    assert str(caught.value).startswith(f"--preset {name}")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_names_and_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"--preset demmo is unknown: choose one of cifar10, .*demo, .*do you mean demo"
    ):
        read_preset("demmo")
    with pytest.raises(UserError, match="is a folder: choose one of "):
        read_preset(str(tmp_path))
    assert "demo" in preset_names()


def test_preset_cases(cases_root: Path) -> None:
    presets = cases_root / "presets"
    assert read_preset(str(presets / "bom.toml")) == {"run.rounds": 1}
    for name in ("broken", "flat", "latin1"):
        with pytest.raises(UserError, match=f"--preset .*{name}.toml"):
            read_preset(str(presets / f"{name}.toml"))
