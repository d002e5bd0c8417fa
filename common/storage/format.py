"""The version of what runs leave behind: run folders, checkpoints and stored models."""

from pathlib import Path

from common.errors import UserError

FORMAT = 2  # 2: `part` in the place of `depth`, method's own values in stored models


def check_format(path: Path, found: object) -> None:
    """Raise `UserError` unless what `path` holds was written in this version's format."""
    if found != FORMAT:
        raise UserError(
            f"{path} has format {found}, but this version of EarlyBloom reads format {FORMAT}: start a new run, or use "
            "the commit that the run's config.toml names"
        )
