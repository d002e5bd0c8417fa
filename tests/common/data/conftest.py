"""What tests of data share."""

import pytest

from common.data.dataset import _load


@pytest.fixture(autouse=True)
def nothing_loaded_yet() -> None:
    """Forget what the process holds: a test changes files and fakes downloads under names used by others."""
    _load.cache_clear()
