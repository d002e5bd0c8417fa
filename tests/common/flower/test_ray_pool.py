"""Flower's pool without dead workers."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from types import SimpleNamespace

import pytest
import ray
from flwr.simulation.ray_transport import ray_actor
from flwr.simulation.ray_transport.ray_actor import BasicActorPool
from ray._private import node, services
from ray.exceptions import ActorDiedError

from common.flower import ray_pool


class Pool(BasicActorPool):
    """A pool of two workers without Ray; a new one is named "new"."""

    def __init__(self) -> None:
        self.pool, self.num_actors, self._future_to_actor = ["a", "b"], 2, {}
        self.create_actor_fn = lambda: "new"


class New:
    """A worker that is being started."""

    __ray_ready__ = SimpleNamespace(remote=lambda: "ready")


@pytest.fixture
def pool() -> Pool:
    class Mended(Pool):
        pass

    ray_pool.mend(Mended)
    return Mended()


@pytest.fixture
def by_name() -> Iterator[None]:
    """Afterwards this process sends Flower's worker class by its module's name again."""
    yield
    with suppress(ValueError):  # nothing changed it
        ray.cloudpickle.unregister_pickle_by_value(ray_actor)


def send(pool: Pool, error: Exception | None = None) -> str:
    """Send a message as Flower's backend does; return the worker that got it."""
    future = pool.submit(lambda actor, *job: actor, (None, None, "0", None))
    try:
        if error:
            raise error
    except Exception:
        pool.add_actor_back_to_pool(future)
    else:
        pool.add_actor_back_to_pool(future)
    return future


def test_dead_worker_gets_no_more_messages(pool):
    assert [send(pool), send(pool, ActorDiedError()), send(pool), send(pool)] == ["b", "b", "a", "a"]
    assert send(pool, ValueError()) == send(pool) == "a"  # a client's error costs no worker


def test_pool_without_workers_says_so(pool):
    send(pool, ActorDiedError())
    send(pool, ActorDiedError())
    with pytest.raises(RuntimeError, match="all workers of the simulation died"):
        send(pool)


def test_message_waits_for_the_worker_that_replaces_the_last_one(pool, monkeypatch):
    ready = threading.Event()
    monkeypatch.setattr(ray, "wait", lambda refs, timeout: (refs, []) if ready.wait(timeout) else ([], refs))
    pool.create_actor_fn = New
    send(pool, ActorDiedError())
    send(pool, ActorDiedError())
    threading.Timer(0.2, ready.set).start()
    assert isinstance(send(pool), New)


def test_pool_ends_while_a_new_worker_starts(pool, monkeypatch):
    killed: list[object] = []
    monkeypatch.setattr(ray, "wait", lambda refs, timeout: (time.sleep(timeout), ([], refs))[1])  # it is never ready
    monkeypatch.setattr(ray, "kill", killed.append)
    actor = New()
    pool.create_actor_fn = lambda: actor
    send(pool, ActorDiedError())
    pool.pool = []
    pool.terminate_all_actors()
    assert killed == [actor]


def test_unmended_pool_uses_dead_workers():
    """Flower may have changed when this fails: then `common.flower.ray_pool` can go."""
    pool = Pool()
    assert send(pool, ActorDiedError()) == send(pool)


def test_ray_that_starts_is_looked_for_often(monkeypatch):
    """Ray may have changed when this fails: then its own pace may do."""
    for module in (node, services):
        monkeypatch.setattr(module, "time", module.time)  # restored afterwards
    ray_pool.look_often()
    pauses: list[float] = []
    monkeypatch.setattr(ray_pool, "time", SimpleNamespace(sleep=pauses.append, time=time.time))
    monkeypatch.setattr(services, "find_node_ids", lambda: {"ab"} if len(pauses) == 3 else set())
    found = SimpleNamespace(is_head_node=True)
    client = SimpleNamespace(get_all_node_info=lambda **_: {"ab": found})
    monkeypatch.setattr(services, "NodeID", SimpleNamespace(from_hex=lambda name: SimpleNamespace(binary=name.encode)))
    assert services.get_node_to_connect_for_driver(client) is found
    assert pauses == [ray_pool.PAUSE] * 3


@ray.remote(num_cpus=1)
class Worker:
    """Says which packages it has imported."""

    def imported(self) -> list[str]:
        return sorted(sys.modules)


@pytest.mark.deployment
def test_workers_import_torch_before_their_first_message():
    class Early(BasicActorPool):
        pass

    starting = ray_pool.import_early(Early)
    with ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False):
        pool = Early(Worker, {"num_cpus": 1}, {})
        assert not starting.is_set()
        pool.add_actors_to_pool(1)
        assert starting.is_set()
        assert "torch" in ray.get(pool.pool[0].imported.remote())


@pytest.mark.deployment
@pytest.mark.parametrize("prepared", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_prepared_workers_do_not_import_flowers_simulation(monkeypatch, by_name, prepared):
    if prepared:
        monkeypatch.setattr(ray_pool, "mend", lambda pool: None)
        monkeypatch.setattr(ray, "is_initialized", lambda: True)
        ray_pool.prepare_workers()
        monkeypatch.undo()
    with ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False):
        actor = ray_actor.ClientAppActor.remote()
        modules = ray.get(actor.__ray_call__.remote(lambda _: set(sys.modules)))
    assert "flwr.clientapp" in modules
    assert ("flwr.simulation" in modules) != prepared


def test_preparing_mends_flowers_pool(monkeypatch, by_name):
    mended: list[object] = []
    monkeypatch.setattr(ray_pool, "mend", mended.append)
    monkeypatch.setattr(ray, "is_initialized", lambda: True)  # so the pool may be there: nothing to wait for
    ray_pool.prepare_workers()
    assert mended == [BasicActorPool]
