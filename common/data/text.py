"""Texts as token ids, without a vocabulary that clients would have to agree on.

A token's id is a hash of its letters (Weinberger et al., ICML 2009). It is the same on every machine, and no client
learns the words of another. Two words may share an id; with 32,000 ids this happens to few words of a small set.
"""

import re
import zlib
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.data.support import printable
from common.errors import UserError

PADDING = 0  # the token id of a position after a text's end
PATTERN = r"\w+|[^\w\s]"  # of a token
_TOKEN = re.compile(PATTERN)


def token_ids(text: str, vocabulary: int, length: int) -> NDArray[np.int32]:
    """Return a text's first `length` tokens, lower-cased words and punctuation marks, as ids (length,).

    Ids go from 1 to vocabulary - 1; positions after the text's end hold 0.
    """
    ids = np.full(length, PADDING, dtype=np.int32)
    for position, token in enumerate(islice(_TOKEN.finditer(text.lower()), length)):
        ids[position] = 1 + zlib.crc32(token.group().encode()) % (vocabulary - 1)
    return ids


def read_text(file: Path) -> str:
    """Return the text of a file in UTF-8; raises `UserError` when it cannot be read or has no token."""
    name = printable(str(file))
    try:
        text = file.read_text("utf-8-sig")
    except OSError as error:
        raise UserError(f"{name} cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{name} cannot be read as a text: it is not UTF-8") from error
    if not _TOKEN.search(text):
        raise UserError(f"{name} cannot be read as a text: it has no word")
    return text
