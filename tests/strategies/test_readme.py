"""The code blocks of strategies/README.md equal the files that they show, and run."""

import ast
import re
from pathlib import Path

import pytest
from flwr.app import Context, RecordDict

from client.app import app as client_app
from common.flower.local_grid import LocalGrid

STRATEGIES = Path(__file__).resolve().parents[2] / "strategies"
METHOD, SERVER_APP, BY_HAND = re.findall(r"```python\n(.*?)```", (STRATEGIES / "README.md").read_text(), re.DOTALL)


def test_readme_method_equals_registered_file():
    tree = ast.parse((STRATEGIES / "baselines" / "median.py").read_text())
    tree.body = tree.body[1:]  # the module's docstring
    assert ast.dump(ast.parse(METHOD)) == ast.dump(tree)


def test_readme_server_app_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / ".flwr"))
    names: dict[str, object] = {}
    exec(SERVER_APP, names)
    grid = LocalGrid(client_app, [{"partition-id": 0}, {"partition-id": 1}])
    names["app"](grid, Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config={}))  # type: ignore[operator]
    assert "difficulty" in capsys.readouterr().out


def test_readme_strategy_built_by_hand_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / ".flwr"))
    names: dict[str, object] = {}
    exec(BY_HAND, names)
    assert re.match(r"1 {1: \d, 2: \d, 3: \d} 0\.\d+", capsys.readouterr().out)
    assert names["strategy"].round == 1  # type: ignore[attr-defined]
    state = names["model"].state_dict()  # type: ignore[attr-defined]
    assert all(value.equal(names["strategy"].model[key]) for key, value in state.items())  # type: ignore[attr-defined]


@pytest.mark.parametrize("code", [METHOD, SERVER_APP, BY_HAND])
def test_readme_code_compiles(code):
    compile(code, "README.md", "exec")
