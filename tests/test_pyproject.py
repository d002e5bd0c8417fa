"""What holds for the whole tree: the app's configuration, which way imports go, how long files are."""

import ast
import json
import tomllib
from collections.abc import Iterator
from pathlib import Path

import networkx as nx
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
METHOD_FOLDERS = ("cafedistill", "darkdistill", "distree", "hetero_splitee")
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


def name_of(file: Path) -> str:
    """A file's module; a package goes by its folder."""
    return ".".join(file.relative_to(PROJECT).with_suffix("").parts).removesuffix(".__init__")


def dependencies(file: Path) -> set[str]:
    """The project's modules that a file imports, wherever the import stands in it."""
    modules = {name_of(other) for other in sources(*MAY_IMPORT)}
    found = {f"{module}.{name}" if f"{module}.{name}" in modules else module for module, name in imported(file)}
    return found & modules


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


def test_a_devices_packages_are_a_part_of_the_apps():
    """Neither torch nor Flower, and every range as in `pyproject.toml`."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    lines = (PROJECT / "client" / "requirements.txt").read_text().splitlines()
    packages = {line for line in lines if line and not line.startswith("#")}
    assert packages <= {*project["dependencies"], *project["optional-dependencies"]["export"]}
    assert not [package for package in packages if package.startswith(("torch", "flwr"))]


def test_configuration_keys_are_the_known_ones():
    """A new key is a decision: write it into the file, and into the README of what it belongs to."""
    known = (PROJECT / "tests" / "configuration_keys.txt").read_text().split()
    assert list(load_config({}, all_settings()).flat()) == known


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_run_one_way(package):
    files = sources(package)
    assert files
    for file in files:
        roots = {module.split(".")[0] for module, _ in imported(file)}
        assert roots & {*MAY_IMPORT, "tests", "benchmarks"} <= MAY_IMPORT[package], file


def owner(module: str) -> str:
    """The method that a module of `strategies` belongs to, "" for the frame and for what methods share."""
    _, folder, *rest = [*module.split("."), ""]
    if folder in ("baselines", "personalised"):
        return "" if rest[0] in ("", "base", "settings") else f"{folder}.{rest[0]}"
    return folder if folder in METHOD_FOLDERS else ""


def test_the_frame_imports_no_method_and_methods_import_no_other():
    for file in sources("strategies"):
        own = owner(name_of(file))
        for module in dependencies(file):
            if module.startswith("strategies.") and owner(module) != own:
                assert not owner(module), f"{name_of(file)} imports {module}"


def test_engine_and_node_stand_on_the_contract():
    """Inside strategies: engine and node -> method, parts; node also looks methods up by name."""
    allowed = {
        "engine": {"engine", "method", "parts", "client_evaluation"},
        "node": {"node", "method", "parts", "client_evaluation", "registry"},
    }
    for floor, may in allowed.items():
        for file in sources(f"strategies/{floor}"):
            found = {module.split(".")[1] for module in dependencies(file) if module.startswith("strategies.")}
            assert found <= may, file
    for name, may in {"method": {"parts"}, "parts": set(), "client_evaluation": set()}.items():
        found = dependencies(PROJECT / "strategies" / f"{name}.py")
        assert {module.split(".")[1] for module in found if module.startswith("strategies.")} <= may, name


def test_no_import_circle_type_only_ones_included():
    graph = {name_of(file): dependencies(file) for file in sources(*MAY_IMPORT)}
    circles = [sorted(group) for group in nx.strongly_connected_components(nx.DiGraph(graph)) if len(group) > 1]
    assert not circles
    assert not [name for name, others in graph.items() if name in others]


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
