"""The format version of run folders, checkpoints and stored models."""

from pathlib import Path

from common.errors import UserError

FORMAT = 2  # 2: `part` replaces `depth`, stored models hold the method's own values


def check_format(path: Path, found: object) -> None:
    """Raise `UserError` unless `path` was written in this version's format."""
    if found != FORMAT:
        raise UserError(
            f"{path} has format {found}, but this version of EarlyBloom reads format {FORMAT}: start a new run, or use "
            "the commit that the run's config.toml names"
        )
