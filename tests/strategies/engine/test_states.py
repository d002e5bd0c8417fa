"""Clients' states in a simulation on several machines: here nodes with a folder each."""

from pathlib import Path
from typing import Any

import pytest
import torch

from client.app import app
from common.config import replace
from common.errors import UserError
from common.flower.local_grid import LocalGrid
from common.storage.client_store import TOKEN
from common.storage.files import StorageError
from strategies.engine.rounds import QuorumError

# six of twelve: some clients are on the other machine in rounds 3 and 4
RUN = {
    "run.strategy": "ditto", "run.rounds": 4, "clients.count": 12, "clients.per-round": 6, "round.quorum": 0.0,
}  # fmt: skip


@pytest.fixture
def machines(tmp_path: Path) -> list[dict[str, Any]]:
    return [{"partition-id": p, "state": str(tmp_path / name)} for p, name in enumerate("ab")]


def test_states_that_travel_give_the_bits_of_one_machine(run_strategy, machines, tmp_path):
    alone = run_strategy({**RUN, "run.name": "alone"}).strategy
    run = run_strategy({**RUN, "clients.state": "server"}, machines)
    assert all(torch.equal(alone.model[key], run.strategy.model[key]) for key in alone.model)
    kept = sorted((tmp_path / "clients" / "test.states").glob("*/*"))
    assert {path.parent.name for path in kept} == {f"client-{client:06d}" for client in alone.committed}
    for client, round_ in run.strategy.committed.items():
        own = tmp_path / "clients" / "alone" / f"client-{client:06d}" / f"round-{round_:06d}.safetensors"
        assert own.read_bytes() == run.strategy.states.store.read(client, round_)


def test_states_that_stay_are_missed(run_strategy, machines):
    failures = [reason for record in run_strategy(RUN, machines).records for reason in record.failures.values()]
    assert failures
    assert all("its state of round" in reason for reason in failures)


def test_shared_store_is_checked_on_every_machine(prepare_run, run_strategy, machines, tmp_path):
    shared = {**RUN, "clients.state": "shared"}
    run_strategy(shared, [{"partition-id": 0}, {"partition-id": 1}])
    assert (tmp_path / "clients" / "test" / TOKEN).exists()
    with pytest.raises(UserError, match=r"machine .*: .*/[ab]/test is not the folder that the server writes to"):
        run_strategy({**shared, "run.name": "test"}, machines)
    run = prepare_run(shared)
    run.strategy.start(run.grid, num_rounds=1)
    run.strategy.states.token = "of another server"
    run.strategy.config = replace(run.strategy.config, round={"quorum": 1.0})
    with pytest.raises(QuorumError, match="is not the folder that the server writes to"):
        run.strategy.start(run.grid)


def test_strategy_that_does_not_start_leaves_the_shared_store_as_it_is(prepare_run, run_strategy, tmp_path):
    shared = {**RUN, "clients.state": "shared", "run.rounds": 1}
    run_strategy(shared)
    before = (tmp_path / "clients" / "test" / TOKEN).read_text()
    prepare_run(shared)  # such as one whose run.name is taken
    assert (tmp_path / "clients" / "test" / TOKEN).read_text() == before


def test_machine_with_other_sources_ends_the_run(prepare_run, monkeypatch):
    monkeypatch.setattr("strategies.engine.strategy.digest", lambda: "0123")
    run = prepare_run(RUN)
    with pytest.raises(UserError, match=r"machine .*: its packages .* the server has 0123"):
        run.strategy.start(run.grid)


def test_machine_without_the_data_ends_the_run(prepare_run, monkeypatch):
    def load(*_: object) -> None:
        raise UserError("data.root is /data, which is not a folder")

    run = prepare_run(RUN)
    monkeypatch.setattr("strategies.node.node.load", load)
    with pytest.raises(UserError, match=r"machine .*: data\.root is /data, which is not a folder"):
        run.strategy.start(run.grid)


def test_device_with_other_sources_is_left_out(prepare_run, monkeypatch, flower_log):
    monkeypatch.setattr("strategies.engine.strategy.digest", lambda: "0123")
    run = prepare_run({**RUN, "clients.per-round": 1, "round.wait": 0.0}, [{"client-id": 0}])
    with pytest.raises(QuorumError, match="no client can take part"):
        run.strategy.start(LocalGrid(app, [{"client-id": 0}]))
    assert any("is left out: machine" in line for line in flower_log)


def test_full_disk_of_the_server_ends_the_run(prepare_run, monkeypatch):
    def full(*_: object) -> None:
        raise StorageError("round-000001.safetensors cannot be written into clients: No space left on device")

    run = prepare_run({**RUN, "clients.state": "server"})
    monkeypatch.setattr(run.strategy.states.store, "write", full)
    with pytest.raises(UserError, match=r"round 1 cannot be kept: .*No space left .*; make room, then continue with"):
        run.strategy.start(run.grid)


def test_states_that_travel_refuse_late_answers(prepare_run):
    with pytest.raises(UserError, match="late answers cannot bring their states"):
        prepare_run({**RUN, "run.strategy": "eefl", "clients.state": "server", "round.staleness": 0.5})


def test_shared_states_need_a_folder(prepare_run):
    with pytest.raises(UserError, match=r"set clients\.store to the folder that all machines share"):
        prepare_run({**RUN, "clients.state": "shared", "clients.store": ""})
