"""Shared by the tests of data."""

import pytest

from common.data.arrays import _load
from common.data.fingerprint import look_again
from common.data.outside import code_digest


@pytest.fixture(autouse=True)
def nothing_loaded_yet() -> None:
    """Empty the process's caches: a test changes files and fakes downloads under names that others use."""
    _load.cache_clear()
    code_digest.cache_clear()
    look_again()
