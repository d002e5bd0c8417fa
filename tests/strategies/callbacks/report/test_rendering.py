import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_files
from flwr.cli.install import install_from_fab
from flwr.cli.utils import collect_files
from jinja2 import UndefinedError

from common.profiles import TABLE
from strategies.callbacks.report.page import run_page
from strategies.callbacks.report.records import load_run
from strategies.callbacks.report.rendering import Table, render

PROJECT = Path(__file__).resolve().parents[4]
TEMPLATES = Path("strategies/callbacks/report/templates")
WRITE_REPORT = (
    "import sys; from pathlib import Path; from strategies.callbacks import report; print(report.__file__); "
    "report.write_report(Path(sys.argv[1]))"
)


def test_table_aligns_numbers_right_and_escapes_texts() -> None:
    table = Table(("a", "b"), [("x<y", "1")], numbers=True)
    text = render("comparison.html.md", title="t", sections=[("", [], [], table, [])]).replace("\n", "")
    assert '<tr><th>a</th><th class="number">b</th></tr>' in text
    assert '<tr><th>x&lt;y</th><td class="number">1</td></tr>' in text


def test_missing_value_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="sections"):
        render("comparison.html.md", title="t")


@pytest.fixture
def installed_app(tmp_path: Path) -> Path:
    """The app as Flower builds it into an app file (FAB) and installs it on a server."""
    packages = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    files = {name: PROJECT / name for name in ("pyproject.toml", ".gitignore", "LICENSE")}
    for package in packages["packages"]:  # the whole project holds the virtual environment too
        files |= {f"{package}/{name}": path for name, path in collect_files(PROJECT / package).items()}
    fab, _ = build_fab_from_files(files)
    return install_from_fab(fab, tmp_path / "flower", skip_prompt=True)


def test_installed_app_knows_the_same_devices(installed_app: Path) -> None:
    assert (installed_app / TABLE.relative_to(PROJECT)).read_text() == TABLE.read_text()


def test_installed_app_renders_the_same_report(
    installed_app: Path, make_run: Callable[..., Path], tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    templates = {file.name for file in (PROJECT / TEMPLATES).iterdir()}
    assert {file.name for file in (installed_app / TEMPLATES).iterdir()} == templates
    folder = make_run()
    written = subprocess.run(
        [sys.executable, "-c", WRITE_REPORT, str(folder)], cwd=tmp_path, text=True, capture_output=True, check=True,
        env={**os.environ, "PYTHONPATH": str(installed_app)},
    )  # fmt: skip
    assert Path(written.stdout.strip()).is_relative_to(installed_app)
    assert (folder / "report.html").read_text() == run_page(load_run(folder))
