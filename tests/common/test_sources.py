"""The digest of the app's sources."""

from pathlib import Path

from common.sources import PACKAGES, digest


def test_digest_follows_the_sources_alone(tmp_path: Path) -> None:
    found = set()
    for number, (name, text) in enumerate([("a.py", "1"), ("a.py", "1"), ("a.py", "2"), ("b.py", "1")]):
        folder = tmp_path / str(number) / PACKAGES[0]
        folder.mkdir(parents=True)
        (folder / name).write_text(text)
        (folder / "notes.txt").write_text(str(number))
        found.add(digest(tmp_path / str(number)))
    assert len(found) == 3
    assert digest() == digest()
