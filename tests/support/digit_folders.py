"""Folders of real digits, as a device brings them."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from sklearn.datasets import load_digits


def write_images(folder: Path, names: Sequence[str], start: int) -> Path:
    """Write ten digits into one folder per class."""
    digits = load_digits()
    for label, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for number, image in enumerate(digits.images[digits.target == label][start : start + 10]):
            Image.fromarray((image * 15).astype("uint8")).save(folder / name / f"{number}.png")
    return folder
