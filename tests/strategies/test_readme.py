"""The code blocks of strategies/README.md equal the files that they show, and run."""

import ast
import copy
import re
from pathlib import Path

import pytest
import torch
from flwr.app import Context, RecordDict

from client.app import app as client_app
from common.flower.local_grid import LocalGrid
from strategies.baselines.eefl import METHOD as EEFL
from strategies.configuration import read_config
from strategies.factory import make_setup
from strategies.method import RoundUpdate, TierUpdate

STRATEGIES = Path(__file__).resolve().parents[2] / "strategies"
METHOD, STATE, SERVER_APP, BY_HAND = re.findall(
    r"```python\n(.*?)```", (STRATEGIES / "README.md").read_text(), re.DOTALL
)


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


def test_server_momentum_moves_the_model_and_survives_a_checkpoint(flat):
    names: dict[str, object] = {}
    exec(STATE, names)
    config = read_config({**flat, "run.strategy": "eefl"})
    one, two = (names["ServerMomentum"](EEFL, make_setup(config, EEFL)) for _ in range(2))  # type: ignore[operator]
    start = {key: value.clone() for key, value in one.model.items()}
    for round_ in (1, 2):  # the clients' average is one below the model, twice
        averages = {key: value - 1 if value.is_floating_point() else value for key, value in one.model.items()}
        one.merge(round_, RoundUpdate({3: TierUpdate(averages, 10, (0,))}))
        if round_ == 1:
            two.restore(*copy.deepcopy(one.checkpoint()))
    two.merge(2, RoundUpdate({3: TierUpdate({k: v - 1 for k, v in two.model.items()}, 10, (0,))}))
    for key in one.velocity:
        assert torch.allclose(one.model[key], start[key] - 1 - 1.9, atol=1e-5), key
        assert torch.equal(one.model[key], two.model[key]), key


@pytest.mark.parametrize("code", [METHOD, STATE, SERVER_APP, BY_HAND])
def test_readme_code_compiles(code):
    compile(code, "README.md", "exec")
