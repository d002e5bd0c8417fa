"""The folder with the app of a run."""

import os
from importlib.util import cache_from_source
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk, build_fab_from_files

from common.errors import UserError
from common.flower.processes import PROJECT
from server.commands import bundle
from server.commands.bundle import app_files


def test_bundle_has_the_bytes_of_the_projects_own(tmp_path: Path) -> None:
    with app_files(tmp_path) as folder:
        found = build_fab_from_disk(folder)
        assert not list(folder.rglob("__pycache__"))
    assert not list(tmp_path.iterdir())
    whole = {}  # as Flower reads the project's folder, but for what it ignores there
    for top in (
        PROJECT / ".gitignore",
        *(path for path in PROJECT.iterdir() if path.name[0] != "." and path.name != "runs"),
    ):
        files = [path for path in top.rglob("*") if path.is_file()] if top.is_dir() else [top]
        whole |= {str(path.relative_to(PROJECT)): path for path in files}
    assert found == build_fab_from_files(whole)[0]


def test_packages_without_the_projects_folder_are_no_app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "PROJECT", tmp_path)
    with pytest.raises(UserError, match=r"is not the project's folder, .*pip install -e \."), app_files(tmp_path):
        pass


def test_compiled_files_are_valid_in_the_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle.sys, "dont_write_bytecode", False)
    source = PROJECT / "common" / "errors.py"
    compiled = Path(cache_from_source(str(source))).relative_to(PROJECT)
    with app_files(tmp_path, compiled=True) as folder:
        # Python takes a compiled file only if it names the source's time
        assert int.from_bytes((folder / compiled).read_bytes()[8:12], "little") == int(source.stat().st_mtime)
        assert (folder / source.relative_to(PROJECT)).stat().st_mtime == source.stat().st_mtime


def test_file_that_is_being_compiled_is_not_copied(tmp_path: Path) -> None:
    unfinished = PROJECT / "common" / "__pycache__" / "errors.cpython-311.pyc.140245"
    unfinished.parent.mkdir(exist_ok=True)
    unfinished.touch()
    try:
        with app_files(tmp_path, compiled=True) as folder:
            assert not list(folder.rglob("*.pyc.*"))
    finally:
        unfinished.unlink()


def test_copy_goes_with_the_next_one_only_if_its_process_has_ended(tmp_path: Path) -> None:
    abandoned, new = (tmp_path / f"{bundle.PREFIX}{name}" for name in ("abandoned", "new"))
    with app_files(tmp_path) as used:
        for folder in (abandoned, new):
            (folder / "server").mkdir(parents=True)
        for folder in (abandoned, used):
            os.utime(folder, (1000, 1000))
        with app_files(tmp_path) as other:
            assert set(tmp_path.iterdir()) == {new, used, other}
