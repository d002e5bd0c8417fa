from pathlib import Path

import pytest

from common.errors import UserError
from common.storage.format import FORMAT, check_format


def test_the_present_format_is_taken():
    check_format(Path("run"), FORMAT)


@pytest.mark.parametrize("found", [FORMAT - 1, FORMAT + 1, str(FORMAT), None])
def test_another_format_is_refused_in_one_line(found):
    with pytest.raises(
        UserError, match=rf"^runs/old has format {found}, but this version .* reads format {FORMAT}: start"
    ):
        check_format(Path("runs/old"), found)
