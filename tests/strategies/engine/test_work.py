"""Seconds of a client's round, against numbers by hand."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from common.config import RunConfig, replace
from common.messages.protocol import ClientReport, pack_state
from common.profiles import Profile
from common.weights.flat import FlatState, Layout
from strategies.engine.work import Work, duration, spread
from strategies.method import Effort, ServerMethod

DOWN = Layout((("w", (1000,)),), (("n", (5,)),))  # 4040 bytes
UP = Layout((("w", (900,)),))  # 3600 bytes
PROFILE = Profile(compute=1e8, bandwidth=1e6, latency=0.25).known()


class Method(ServerMethod):
    """A part costs a million MACs; clients send 160 bytes beside their model."""

    def __init__(self, **train):
        self.config = replace(RunConfig(), train={"epochs": 2, **train})
        self.parts = SimpleNamespace(macs=lambda part: part * 10**6)
        self.layouts, self.uploads = {1: DOWN, 2: DOWN}, {1: UP, 2: UP}

    def client_array_bytes(self, client):
        return 160


CLIENT = ClientReport(0, 1, "", 50, profile=PROFILE)


def test_seconds_are_those_by_hand():
    # computing: 2 * 3 * 1e6 MACs * 50 samples * 2 epochs / 1e8 = 6 s; link: 8 * (4040 + 3600 + 160) / 1e6 + 0.25
    assert duration(Method(), 1, CLIENT, {}) == (6.3124, 0.3124)


def test_arrays_of_its_own_and_shared_states_go_down_too():
    class WithTeacher(Method):
        def shared_states(self, clients):
            return {"teacher": pack_state(FlatState.of({"t": np_to_tensor(25)}))}

    def np_to_tensor(number):
        import torch

        return torch.zeros(number)

    seconds, link = duration(Method(), 1, CLIENT, {"head": np.zeros(1000, dtype=np.float32)})
    assert (seconds, link) == (6.3444, 0.3444)  # 4000 bytes more
    packed = sum(len(array.data) for array in WithTeacher().shared_states([])["teacher"][0].values())
    assert duration(WithTeacher(), 1, CLIENT, {})[1] == round(0.3124 + 8 * packed / 1e6, 6)
    assert packed > 100


def test_deeper_part_more_samples_and_epochs_take_longer():
    deeper = ClientReport(0, 2, "", 50, profile=PROFILE)
    assert duration(Method(), 1, deeper, {}) == (12.3124, 0.3124)
    assert duration(Method(epochs=1), 1, ClientReport(0, 1, "", 100, profile=PROFILE), {}) == (6.3124, 0.3124)
    assert duration(Method(epochs=0), 1, CLIENT, {}) == (0.3124, 0.3124)


def test_method_may_say_what_else_a_round_costs():
    class Streaming(Method):
        def effort(self, client):
            return Effort(5e7, up=1000, down=500, exchanges=4)

    # 2 * 5e7 / 1e8 = 1 s; 8 * (4040 + 3600 + 1500) / 1e6 + 4 * 0.25
    assert duration(Streaming(), 1, CLIENT, {}) == (2.07312, 1.07312)


def test_link_without_bandwidth_takes_no_time():
    report = ClientReport(0, 1, "", 50, profile=Profile(1e8).known())
    assert duration(Method(), 1, report, {}) == (6.0, 0.0)


def test_spread_is_seeded_by_run_round_and_client():
    factors = {spread(0.5, seed, round_, client) for seed in (1, 2) for round_ in (1, 2) for client in (0, 1)}
    assert len(factors) == 8
    assert spread(0.5, 1, 2, 0) == spread(0.5, 1, 2, 0)
    assert spread(0.0, 1, 2, 0) == 1.0


def test_spread_is_lognormal_around_one():
    logs = sorted(math.log(spread(0.5, 7, 1, client)) for client in range(2000))
    assert abs(logs[1000]) < 0.05
    assert np.std(logs) == pytest.approx(0.5, rel=0.05)


def test_spread_stretches_all_of_a_clients_time():
    method, factor = Method(), spread(0.5, RunConfig().run.seed, 3, 0)
    method.config = replace(method.config, clients={"clock": "simulated", "time_spread": 0.5})
    assert duration(method, 3, CLIENT, {}) == (round(6.3124 * factor, 6), round(0.3124 * factor, 6))


def test_busy_seconds_are_those_between_two_moments():
    work = Work(CLIENT, 1, 1, start=2.0, seconds=5.0, link=1.0, until=7.0)
    assert [work.busy(*times) for times in ((0, 1), (0, 3), (3, 4), (6, 9), (8, 9))] == [0, 1, 1, 1, 0]
    assert work.answers
    assert not Work(CLIENT, 1, 1, start=2.0, seconds=5.0, link=1.0, until=6.0).answers
