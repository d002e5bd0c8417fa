import pytest
import torch

from common.errors import UserError
from common.storage import files as storage
from common.storage.client_store import ClientState, ClientStore


def state(number: int) -> ClientState:
    return ClientState({"m": torch.tensor([float(number)])}, {"steps": number})


def rounds(store: ClientStore, client: int) -> list[int]:
    return sorted(store._versions(client))


@pytest.fixture
def store(tmp_path) -> ClientStore:
    return ClientStore(tmp_path, "run-1")


def test_client_without_a_state_has_no_folder(store, tmp_path):
    assert store.load(3, 0) == ClientState()
    assert list(tmp_path.iterdir()) == []


def test_committed_state_is_read_back(store):
    store.save(3, 1, state(1))
    loaded = store.load(3, 1)
    assert loaded.tensors["m"].item() == 1
    assert loaded.values == {"steps": 1}


def test_uncommitted_version_is_discarded(store):
    store.save(3, 1, state(1))
    store.save(3, 2, state(2))  # the round was killed: the server still names round 1
    assert store.load(3, 1).values == {"steps": 1}
    assert rounds(store, 3) == [1]


def test_older_versions_are_pruned_after_the_commit(store):
    for round_ in (1, 2, 3):
        store.save(3, round_, state(round_))
    assert store.load(3, 3).values == {"steps": 3}
    assert rounds(store, 3) == [3]


def test_committed_version_survives_the_next_save(store):
    store.save(3, 1, state(1))
    store.load(3, 1)
    store.save(3, 2, state(2))
    assert rounds(store, 3) == [1, 2]


def test_new_run_of_the_same_name_starts_empty(store):
    store.save(3, 1, state(1))
    assert store.load(3, 0) == ClientState()
    assert rounds(store, 3) == []


def test_lost_state_is_reported_and_not_replaced(store):
    store.save(3, 1, state(1))
    with pytest.raises(UserError, match=r"client 3: its state of round 4 is not in .*clients\.store"):
        store.load(3, 4)
    assert rounds(store, 3) == [1]


def test_half_a_file_of_a_killed_process_is_swept(store, tmp_path):
    store.save(3, 1, state(1))
    folder = tmp_path / "run-1" / "client-000003"
    (folder / ".round-000002.safetensors.0123").write_bytes(b"half")
    store.load(3, 1)
    assert [file.name for file in folder.iterdir()] == ["round-000001.safetensors"]


def test_clients_and_runs_have_separate_states(store, tmp_path):
    other = ClientStore(tmp_path, "run-2")
    store.save(1, 1, state(1))
    store.save(2, 1, state(2))
    other.save(1, 1, state(3))
    assert store.load(1, 1).values == {"steps": 1}
    assert store.load(2, 1).values == {"steps": 2}
    assert other.load(1, 1).values == {"steps": 3}


def test_writing_is_atomic(store, monkeypatch):
    store.save(3, 1, state(1))

    def killed(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(storage.os, "fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        store.save(3, 1, state(9))
    with pytest.raises(KeyboardInterrupt):
        store.save(3, 2, state(2))
    assert rounds(store, 3) == [1]
    assert store.load(3, 1).values == {"steps": 1}


def test_damaged_state_is_reported(store):
    store.save(3, 1, state(1))
    path = store._versions(3)[1]
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(UserError, match="cannot be read"):
        store.load(3, 1)


def test_state_travels_to_another_store(store, tmp_path):
    for round_ in (1, 2, 3):
        store.save(3, round_, state(round_))
    other = ClientStore(tmp_path / "elsewhere", "run-1")
    other.write(3, 2, store.read(3, 2))
    assert other.load(3, 2) == store.load(3, 2, prune=False)
    store.prune(3, {1, 3})
    assert rounds(store, 3) == [1, 3]
    with pytest.raises(UserError, match="its state of round 2 is not in"):
        store.read(3, 2)


def test_shared_folder_has_the_servers_token(store, tmp_path):
    with pytest.raises(UserError, match="is not the folder that the server writes to"):
        store.check("1234")
    store.mark("1234")
    ClientStore(tmp_path, "run-1").check("1234")
    store.mark("5678")
    with pytest.raises(UserError, match="is not the folder that the server writes to"):
        store.check("1234")


@pytest.mark.parametrize("name", ["", "..", "a/b", "/etc", ".hidden", "x" * 101, "a b", "a\n"])
def test_invalid_run_names_are_refused(tmp_path, name):
    with pytest.raises(UserError, match="run name"):
        ClientStore(tmp_path, name)
