"""The documents' links, paths and commands: what they name exists, and what they tell a user to type is understood."""

import argparse
import re
import shlex
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

import client.__main__
import server.__main__
from server.commands.overrides import read_overrides
from strategies.configuration import read_config
from strategies.registry import METHODS

PROJECT = Path(__file__).parents[1]
DOCUMENTS = sorted(
    file.relative_to(PROJECT)
    for pattern in (
        "*.md",
        "benchmarks/*.md",
        "client/*.md",
        "common/*/*.md",
        "docker/*.md",
        "server/*/*.md",
        "strategies/**/*.md",
    )
    for file in PROJECT.glob(pattern)
    if not file.name.endswith(".html.md")  # the report's templates
)
LINK = re.compile(r"\]\((?!https?:)(?P<path>[^)#]*)(#(?P<anchor>[^)]+))?\)")
FENCE = re.compile(r"^```.*?\n(?P<body>.*?)^```$", re.DOTALL | re.MULTILINE)
CODE = re.compile(r"`(?P<code>[^`\n]+)`")
FILE = re.compile(r"[\w/.-]+\.(py|md|toml|conf|yml|proto|json)")
MADE = (  # files that a run, a study or a user makes
    "data.json", "metrics.jsonl", "answers.json", "config.toml", "settings.toml", "study.json", "gentle.toml",
    "model.json",
)  # fmt: skip
COMMAND = re.compile(r"python -m (?P<module>server|client|benchmarks\.\w+)(?P<words>.*)")
MAIN = {"server": server.__main__.main, "client": client.__main__.main}


class Parsed(Exception):
    """Carries the options of a command that was understood."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options


def text_of(document: Path) -> str:
    return (PROJECT / document).read_text(encoding="utf-8")


def anchors(text: str) -> set[str]:
    """Return the anchors of a document's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def commands(text: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the module and the words of every `python -m` command; a text that only names a verb asks for its help."""
    blocks = [match["body"].replace("\\\n", " ") for match in FENCE.finditer(text)]
    named = [match["code"] for match in CODE.finditer(FENCE.sub("", text))]
    for line in [*(line for block in blocks for line in block.splitlines()), *named]:
        if found := COMMAND.match(line):
            words = shlex.split(found["words"], comments=True)
            yield found["module"], [*words, "--help"] if line in named and len(words) < 2 else words


ALL_COMMANDS = [
    pytest.param(module, words, id=f"{document}: {module} {' '.join(words)}"[:100])
    for document in DOCUMENTS
    for module, words in commands(text_of(document))
]


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_links_lead_somewhere(document: Path) -> None:
    text = text_of(document)
    for link in LINK.finditer(text):
        target = (PROJECT / document).parent / link["path"] if link["path"] else PROJECT / document
        assert target.exists(), link[0]
        if link["anchor"]:
            assert link["anchor"] in anchors(target.read_text(encoding="utf-8")), link[0]


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_files_in_text_exist(document: Path) -> None:
    folders = (PROJECT, (PROJECT / document).parent, PROJECT / "benchmarks" / "results")
    named = {
        match["code"] for match in CODE.finditer(FENCE.sub("", text_of(document))) if FILE.fullmatch(match["code"])
    }
    missing = {name for name in named if not any((folder / name).exists() for folder in folders)}
    assert {name for name in missing if not name.endswith(MADE)} == set()


@pytest.mark.parametrize(("module", "words"), ALL_COMMANDS)
def test_commands_are_understood(module: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    if module not in MAIN:
        assert find_spec(module)
        return
    parse_args = argparse.ArgumentParser.parse_args

    def parse(parser: argparse.ArgumentParser, arguments: list[str]) -> None:
        raise Parsed(parse_args(parser, arguments))

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)
    with pytest.raises((Parsed, SystemExit)) as ended:
        MAIN[module](words)
    if isinstance(ended.value, SystemExit):
        assert ended.value.code == 0
    elif "config" in vars(ended.value.options) and not getattr(ended.value.options, "file", None):  # a study's own
        read_config({"run.name": "documents", **read_overrides(ended.value.options)})


def test_readme_has_every_method() -> None:
    readme = text_of(Path("README.md"))
    assert [name for name in METHODS if f"`{name}`" not in readme] == []


def test_readme_is_short() -> None:
    lines = text_of(Path("README.md")).splitlines()
    assert len([line for line in lines if not line.startswith("|")]) <= 138  # a new method has room for its row
    assert [line for line in lines if len(line) >= 120 and not line.startswith("|")] == []
