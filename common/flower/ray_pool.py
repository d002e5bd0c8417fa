"""Ray for simulations: its workers start and import torch early, and those that died are replaced.

Left to itself a worker imports torch with its first message, when the server has imported all that it needs, and with
its class all of Flower's simulation, a web framework and a database included. And Flower 1.42 puts a worker back into
its pool whatever happened to it. A dead one fails a message at once, so it is the first that is free again, and fails
the next one, too.

Where Ray 2.60 waits for another Ray that starts, it looks once a second.
"""

import sys
import time
from collections.abc import Callable
from contextlib import suppress
from threading import Event, Thread
from typing import Any

PAUSE = 0.05  # seconds between two looks, for a free worker or for a Ray that starts
JOIN = 10.0  # seconds that the server waits at most until Ray is joined and workers start, before its own imports
START = 60.0  # seconds in which a new worker starts, if the cluster has room for it


def prepare_workers() -> None:
    """Mend the pool of this process's simulation; returns when its workers start, or after `JOIN`."""
    import ray
    from flwr.simulation.ray_transport import ray_actor
    from flwr.simulation.ray_transport.ray_actor import BasicActorPool

    ray.cloudpickle.register_pickle_by_value(ray_actor)  # workers get the class itself, not the name of its module
    mend(BasicActorPool)
    if not ray.is_initialized():  # so there is no pool yet
        import_early(BasicActorPool).wait(JOIN)


class Clock:
    """Stands for the module `time` in a module of Ray's: no pause is longer than `PAUSE`."""

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)

    def sleep(self, seconds: float) -> None:
        """Pause."""
        time.sleep(min(seconds, PAUSE))


def look_often() -> None:
    """Let this process join a Ray as soon as it has started."""
    with suppress(ImportError):  # another release of Ray, which keeps its own pace
        from ray._private import node, services

        node.time = services.time = Clock()  # type: ignore[assignment]


def import_early(pool: type[Any]) -> Event:
    """Let the pool's workers import torch when they start, not with their first message; the event is their start."""
    add: Callable[..., None] = pool.add_actors_to_pool
    starting = Event()

    def import_torch(_: Any) -> None:  # sent to the worker as code: it does not have the app yet
        with suppress(ImportError):  # which the first message reports
            import torch  # noqa: F401

    def add_actors_to_pool(self: Any, count: int) -> None:
        add(self, count)
        for actor in self.pool:
            actor.__ray_call__.remote(import_torch)
        starting.set()

    pool.add_actors_to_pool = add_actors_to_pool
    return starting


def mend(pool: type[Any]) -> None:
    """Replace the pool's methods that know nothing of dead workers."""
    import ray
    from ray.exceptions import OutOfMemoryError, RayActorError

    submit_one: Callable[..., Any] = pool.submit
    terminate: Callable[..., None] = pool.terminate_all_actors
    ending, replacing = Event(), list[Thread]()

    def replace_dead(self: Any) -> None:
        with suppress(Exception):
            actor = self.create_actor_fn()
            ready, end = actor.__ray_ready__.remote(), time.monotonic() + START
            while not ending.is_set() and time.monotonic() < end:
                if ray.wait([ready], timeout=PAUSE)[0]:
                    self.num_actors += 1
                    self.pool.append(actor)
                    return
            ray.kill(actor)

    def terminate_all_actors(self: Any) -> None:
        ending.set()
        for thread in replacing:  # Ray must not shut down under a thread that waits for a worker
            thread.join()
        terminate(self)

    def add_actor_back_to_pool(self: Any, future: Any) -> None:
        actor = self._future_to_actor.pop(future)
        if isinstance(sys.exception(), RayActorError | OutOfMemoryError):
            self.num_actors -= 1
            replacing.append(Thread(target=replace_dead, args=(self,), daemon=True))
            replacing[-1].start()
        else:
            self.pool.append(actor)

    def submit(self: Any, actor_fn: Any, job: Any) -> Any:
        while self.num_actors > 0 or any(thread.is_alive() for thread in replacing):
            try:
                return submit_one(self, actor_fn, job)
            except IndexError:  # none is free
                time.sleep(PAUSE)
        raise RuntimeError("no worker is left: all workers of the simulation died")

    pool.add_actor_back_to_pool, pool.submit = add_actor_back_to_pool, submit
    pool.terminate_all_actors = terminate_all_actors
