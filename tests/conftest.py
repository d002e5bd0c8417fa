"""Fixtures for every test."""

import os
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Folder of real image sets (cifar10_tiny, ...), set by EARLYBLOOM_DATA."""
    folder = (PROJECT / os.environ.get("EARLYBLOOM_DATA", "../shared/data")).resolve()
    if not (folder / "cifar10_tiny").is_dir():
        pytest.skip(f"no image sets in {folder}: set EARLYBLOOM_DATA to the folder that holds cifar10_tiny")
    return folder
