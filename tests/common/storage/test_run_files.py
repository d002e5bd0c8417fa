from pathlib import Path

import pytest

from common.errors import UserError
from common.storage.format import FORMAT
from common.storage.run_files import BARE, read_events, read_stored, refuse_taken


def test_folder_of_a_run_is_taken(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    refuse_taken(folder)
    folder.mkdir()
    for name in BARE:
        (folder / name).touch()
    refuse_taken(folder)
    (folder / "config.toml").touch()
    with pytest.raises(UserError, match=r"run\.name 'mine' is taken: .* or continue that run with --resume .*mine"):
        refuse_taken(folder)


def test_stored_configuration_is_flat(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(f"[run]\nrounds = 3\n[about]\nformat = {FORMAT}\n")
    assert read_stored(tmp_path) == {"run.rounds": 3}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[run]\nrounds =", r"config\.toml cannot be read: Invalid value"),
        (b"\xff", r"config\.toml cannot be read"),
        (b"[run]\nrounds = 3\n", "has format 1"),
        (None, r"holds no config\.toml, so no round of a run was begun there; give the folder of a run"),
    ],
)
def test_folder_without_a_run_is_refused(content: bytes | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "config.toml").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_stored(tmp_path)
    with pytest.raises(UserError, match="nowhere does not exist; give the folder of a run"):
        read_stored(tmp_path / "nowhere")


def test_line_that_a_kill_cut_short_is_left_out(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    assert read_events(file) == []
    file.write_text('{"a": 1}\n{"a"{"a": 2}\n{"a": 3}\n{"a"')
    assert read_events(file) == [{"a": 1}, {"a": 3}]
