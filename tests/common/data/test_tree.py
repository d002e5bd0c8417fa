import os
from pathlib import Path

import pytest
from PIL import Image

from common.data.tree import SUFFIXES, walk
from common.errors import UserError


def _touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def _found(root: Path) -> list[str]:
    tree = walk(root)
    return tree.names(tree.images)


def test_pillow_reads_every_suffix() -> None:
    assert set(SUFFIXES) <= Image.registered_extensions().keys()
    assert len(set(SUFFIXES)) == len(SUFFIXES)


def test_images_are_found_by_their_suffix_at_any_depth(tmp_path: Path) -> None:
    _touch(tmp_path, "b.TIF", "a/deep/er/x.Jpeg", "a.png", "a/c.jfif")
    assert _found(tmp_path) == ["a/c.jfif", "a/deep/er/x.Jpeg", "a.png", "b.TIF"]
    assert walk(tmp_path).notes() == []


def test_other_files_are_counted_by_suffix(tmp_path: Path) -> None:
    _touch(tmp_path, "a.png", "b.heic", "c/d.HEIC", "README", *(f"x.{number}" for number in range(12)))
    (note,) = walk(tmp_path).notes()
    assert note.startswith("left out: 15 files without an image's suffix (2 .heic, ")
    assert note.endswith(" and 4 more)")


def test_hidden_and_system_files_are_left_out_at_every_depth(tmp_path: Path) -> None:
    _touch(
        tmp_path, "a/b.png", "a/._b.png", "a/.ipynb_checkpoints/b.png", "__MACOSX/a/b.png", "a/Thumbs.db",
        "a/c/desktop.ini", "a/c/d.png",
    )  # fmt: skip
    assert _found(tmp_path) == ["a/b.png", "a/c/d.png"]
    assert walk(tmp_path).notes() == [
        "left out: 5 hidden or system items (__MACOSX, a/._b.png, a/.ipynb_checkpoints, a/Thumbs.db, a/c/desktop.ini)"
    ]


def test_root_itself_may_be_hidden(tmp_path: Path) -> None:
    _touch(tmp_path / ".cache", "a.png")
    assert _found(tmp_path / ".cache") == ["a.png"]


def test_links_out_of_the_folder_are_followed(tmp_path: Path) -> None:
    _touch(tmp_path / "elsewhere", "box/1.png", "blob")
    (tmp_path / "set" / "a").mkdir(parents=True)
    (tmp_path / "set" / "a" / "more").symlink_to("../../elsewhere/box")
    (tmp_path / "set" / "a" / "2.png").symlink_to(tmp_path / "elsewhere" / "blob")
    assert _found(tmp_path / "set") == ["a/2.png", "a/more/1.png"]


def test_linked_files_count_once_where_no_link_leads(tmp_path: Path) -> None:
    _touch(tmp_path / "set", "box/1.png")
    _touch(tmp_path / "elsewhere", "2.png")
    (tmp_path / "set" / "a").symlink_to("box")
    (tmp_path / "set" / "box" / "0.png").symlink_to("1.png")
    (tmp_path / "set" / "x.png").symlink_to("../elsewhere/2.png")
    (tmp_path / "set" / "y.png").symlink_to("../elsewhere/2.png")
    assert _found(tmp_path / "set") == ["box/1.png", "x.png"]
    assert walk(tmp_path / "set").notes() == ["left out: 3 repeated links (a, box/0.png, y.png)"]


def test_circles_of_links_end(tmp_path: Path) -> None:
    _touch(tmp_path, "beside/0.png", "set/box/1.png")
    (tmp_path / "set" / "box" / "again").symlink_to("..")
    (tmp_path / "set" / "above").symlink_to(tmp_path)
    (tmp_path / "set" / "itself").symlink_to("itself")
    (tmp_path / "set" / "gone.png").symlink_to("nowhere.png")
    assert _found(tmp_path / "set") == ["box/1.png"]
    assert walk(tmp_path / "set").notes() == [
        "left out: 2 repeated links (above, box/again)", "left out: 2 broken links (gone.png, itself)"
    ]  # fmt: skip


def test_named_pipe_is_no_image(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    assert walk(tmp_path).images == []
    assert walk(tmp_path).notes() == ["left out: 1 file without an image's suffix (1 .png)"]


def test_folder_that_cannot_be_read_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _touch(tmp_path, "a/b.png", "c/d.png")
    real = os.scandir

    def refuse(path: Path) -> object:
        if path == tmp_path / "c":
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=r"the folder \S+/c cannot be read \(Permission denied\): change"):
        walk(tmp_path)


def test_names_that_are_no_text_are_shown_readably(tmp_path: Path) -> None:
    (Path(os.fsdecode(os.fsencode(tmp_path) + b"/a\xff\n.txt"))).touch()
    (Path(os.fsdecode(os.fsencode(tmp_path) + b"/.b\xff\n.png"))).touch()
    assert walk(tmp_path).notes() == [
        "left out: 1 file without an image's suffix (1 .txt)", "left out: 1 hidden or system item (.b??.png)"
    ]  # fmt: skip
