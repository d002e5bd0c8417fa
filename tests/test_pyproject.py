"""What holds for the whole tree: the app's configuration, which way imports go, how long files are."""

import ast
import json
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.config import RunConfig, load_config
from strategies.registry import all_settings

PROJECT = Path(__file__).resolve().parents[1]
MAY_IMPORT = {
    "common": {"common"},
    "strategies": {"common", "strategies"},
    "client": {"client", "common", "strategies"},
    "server": {"common", "server", "strategies"},
}
GENERATED = ("_pb2.py", "_pb2_grpc.py")


def sources(*folders: str) -> list[Path]:
    files = [file for folder in folders for file in sorted((PROJECT / folder).rglob("*.py"))]
    return [file for file in files if not file.name.endswith(GENERATED)]


def imported(file: Path) -> Iterator[tuple[str, str]]:
    """Return (module, name) of every import of a file, wherever it stands in it."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}: imports relatively"
            yield from ((node.module or "", alias.name) for alias in node.names)


def block(config: RunConfig) -> str:
    """The defaults as `pyproject.toml` has to give them."""
    tables: dict[str, list[str]] = {}
    for key, value in config.flat().items():
        section, _, name = key.partition(".")
        tables.setdefault(section, []).append(f"{name} = {json.dumps(value)}")
    return "\n\n".join("\n".join([f"[tool.flwr.app.config.{name}]", *rows]) for name, rows in tables.items())


def test_the_apps_configuration_is_the_schemas_defaults_key_by_key():
    defaults = load_config({}, all_settings())
    given = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    flat = {f"{section}.{name}": value for section, table in given.items() for name, value in table.items()}
    typed = {key: (type(value), value) for key, value in flat.items()}
    expected = {key: (type(value), value) for key, value in defaults.flat().items()}
    if typed != expected:
        wrong = sorted(key for key in typed.keys() | expected.keys() if typed.get(key) != expected.get(key))
        pytest.fail(f"pyproject.toml differs in {', '.join(wrong)}; paste:\n\n{block(defaults)}", pytrace=False)


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_run_one_way(package):
    files = sources(package)
    assert files
    for file in files:
        roots = {module.split(".")[0] for module, _ in imported(file)}
        assert roots & {*MAY_IMPORT, "tests", "benchmarks"} <= MAY_IMPORT[package], file


def test_no_file_is_longer_than_500_lines():
    long = {
        str(file.relative_to(PROJECT)): lines
        for file in sources(*MAY_IMPORT, "tests", "benchmarks")
        if (lines := len(file.read_text().splitlines())) > 500
    }
    assert not long


def test_nothing_is_ever_unpickled():
    forbidden = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
    for file in sources(*MAY_IMPORT):
        modules = {module.split(".")[0] for module, _ in imported(file)}
        assert not modules & forbidden, file
        nodes = list(ast.walk(ast.parse(file.read_text())))
        names = {ast.unparse(node) for node in nodes if isinstance(node, ast.Attribute)}
        assert not names & {"torch.load", "torch.save"}, file
        # numpy reads pickles only when it is told to
        told = {
            ast.unparse(node.value) for node in nodes if isinstance(node, ast.keyword) and node.arg == "allow_pickle"
        }
        assert told <= {"False"}, file


def test_components_and_version_are_the_installed_ones():
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())
    app = project["tool"]["flwr"]["app"]
    for reference in app["components"].values():
        module, _, name = reference.partition(":")
        assert hasattr(__import__(module, fromlist=[name]), name)
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert sorted(packages) == sorted(MAY_IMPORT)
    assert {pattern.split("/")[0] for pattern in app["fab-include"]} >= set(MAY_IMPORT)
