"""Random folders of images: every file is used or named, or one sentence says why not."""

import io
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from PIL import Image

from common.console.samples import find_images, from_folder
from common.data import DataConfig, device_data, load
from common.data.tree import SUFFIXES, SYSTEM_NAMES
from common.errors import UserError

MODES = {
    "L": ("png", "BMP", "tif", "gif", "pgm"), "RGB": ("png", "JPG", "webp", "ppm", "tga", "jp2"),
    "RGBA": ("png", "TIFF"), "LA": ("png",), "P": ("png", "gif"), "1": ("png", "pbm"), "I;16": ("png", "tif"),
    "I": ("tif",), "F": ("tiff", "pfm"), "CMYK": ("jpeg", "tif"),
}  # fmt: skip
FORMATS = {
    "JPG": "JPEG", "JPEG": "JPEG", "TIF": "TIFF", "PGM": "PPM", "PBM": "PPM", "PFM": "PPM", "JP2": "JPEG2000"
}  # fmt: skip
LAYOUTS = (
    [""], [""], ["train"], ["Training", "TEST"], ["train", "val"], ["TRAIN", "test", "Validation"],
    ["train", "Train"], ["test"], ["val", "cat"],
)  # fmt: skip
ODD = (".git", "__MACOSX", "Thumbs.db", "a b", "train", "ca\udcfft", "e\u0301", "\u00e9", "x\ny", "-")
ANY_NAME = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=12)
NAME = st.one_of(
    st.sampled_from(("cat", "dog", "eel") * 3 + ODD), ANY_NAME.filter(lambda name: name not in (".", ".."))
)


@st.composite
def contents(draw: st.DrawFn) -> tuple[bytes, str]:
    """Return a file and its suffix: mostly images, small and of all modes, else damaged ones and other files."""
    mode = draw(st.sampled_from(sorted(MODES)))
    suffix = draw(st.sampled_from(MODES[mode]))
    size = draw(st.sampled_from(((4, 4),) * 39 + ((3, 5),)))
    seed, top = draw(st.integers(0, 9)), draw(st.sampled_from((255, 60000) * 9 + (-9,)))
    levels = np.random.default_rng(seed).random((size[1], size[0])) * top
    if mode in ("F", "I", "I;16"):
        kinds = {"F": np.float32, "I": np.int32, "I;16": np.uint16}
        levels = levels / 60000 if mode == "F" else levels
        image = Image.fromarray(np.abs(levels).astype(np.uint16) if mode == "I;16" else levels.astype(kinds[mode]))
    else:
        image = Image.fromarray(np.abs(levels).astype(np.uint8)).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, FORMATS.get(suffix.upper(), suffix.upper()))
    whole = buffer.getvalue()
    damage = draw(st.sampled_from(("",) * 27 + ("cut", "text", "other")))
    if damage == "other":
        return b"text", draw(st.sampled_from((".txt", ".HEIC", "", ".png.bak")))
    return {"": whole, "cut": whole[: len(whole) // 2], "text": b"no image"}[damage], f".{suffix}"


FILES = st.lists(st.tuples(NAME, contents()), min_size=3, max_size=5, unique_by=lambda pair: pair[0])
CLASSES = st.dictionaries(NAME, FILES, min_size=2, max_size=3)


@st.composite
def trees(draw: st.DrawFn) -> dict[str, bytes]:
    """Return files by path: one to three splits of classes or classes alone, and files at other places."""
    classes, found = draw(CLASSES), {}
    for top in draw(st.sampled_from(LAYOUTS)):
        for name, files in (classes if draw(st.integers(0, 5)) else draw(CLASSES)).items():
            for stem, (content, suffix) in files:
                found[f"{top}/{name}/{stem}{suffix}"] = content
    places = st.tuples(st.lists(NAME, min_size=1, max_size=4), contents())
    for place, (content, suffix) in draw(st.lists(places, max_size=2)):
        found["/".join(place) + suffix] = content
    return found


def _write(root: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        path = root / name.strip("/")
        with suppress(OSError):  # a name that is both a file and a folder, or too long
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def _visible(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if not path.name.startswith(".") and path.name.lower() not in SYSTEM_NAMES:
            yield from _visible(path) if path.is_dir() else (path,)


def _named(notes: tuple[str, ...], *patterns: str) -> int:
    return sum(int(number) for note in notes for pattern in patterns for number in re.findall(pattern, note))


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow, of damaged files
@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(trees(), st.sampled_from((0, 6)), st.booleans())
def test_every_file_is_used_or_named(files: dict[str, bytes], size: int, skip: bool) -> None:
    with TemporaryDirectory() as folder:
        root = Path(folder)
        _write(root, files)
        visible = list(_visible(root))
        images = [path for path in visible if path.suffix.lower() in SUFFIXES]
        try:
            data = load(DataConfig(name="folder", root=folder, image_size=size, skip_damaged=skip), None)
        except UserError as error:
            event("refused: " + re.sub(r"\d+|/\S+|\(.*|'.*", "", str(error).replace(folder, ""))[:40])
            assert "\n" not in str(error)
            classes = ("cat", "dog", "eel")
        else:
            event("used" + " with notes" * bool(data.notes))
            left = _named(data.notes, r"(\d+) images? outside", r"with (\d+) image", r"out: (\d+) images? that cannot")
            used = len(data.train) + len(data.test) + len(data.validation or ())
            assert used + left == len(images)
            assert _named(data.notes, r"(\d+) files? without") == len(visible) - len(images)
            classes = data.classes
        _check_device(root, classes, skip, len(images))
        _check_inference(root, classes, len(images))


def _check_device(root: Path, classes: tuple[str, ...], skip: bool, images: int) -> None:
    with suppress(UserError):
        own = device_data(root, classes, (3, 4, 4), 0.2, 1, skip_damaged=skip)
        left = _named(own.notes, r"(\d+) images? outside", r"out: (\d+) images? that cannot")
        assert len(own.train) + len(own.validation) + left == images


def _check_inference(root: Path, classes: tuple[str, ...], images: int) -> None:
    skipped: list[str] = []
    with suppress(UserError):
        found = find_images(root)
        used = sum(
            map(len, from_folder(root, found, classes, (1, 4, 4), 3, lambda path, reason: skipped.append(reason)))
        )
        assert used + len(skipped) == images
