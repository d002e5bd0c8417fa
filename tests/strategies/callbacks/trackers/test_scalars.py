import pytest

from strategies.callbacks.trackers.scalars import scalars
from tests.strategies.callbacks.samples import client_record, device_time, final_record, record


def test_scalars_hold_every_number_of_a_round() -> None:
    found = scalars(final_record(3))
    assert found == {
        "accuracy/exit-1": pytest.approx(0.3),
        "accuracy/exit-2": pytest.approx(0.6),
        "accuracy/mean": pytest.approx(0.45),
        "accuracy/calibrated": 0.58,
        "accuracy/calibrated-macs": 3e6,
        "clients/loss": pytest.approx(2 / 3),
        "method/generator-1-label": 1.0,
        "method/generator-2-label": 2.0,
        "seconds/clients": 1.0,
        "seconds/server": 0.5,
        "seconds/round": 2.0,
        "bytes/down": 3e6,
        "bytes/up": 1e6,
        "folded/depth-1": 2.0,
        "folded/depth-2": 1.0,
        "failures/clients": 0.0,
        "failures/rejected": 0.0,
        "failures/late": 0.0,
    }
    timed = scalars(record(2, device=device_time(2)))
    assert {tag: value for tag, value in timed.items() if tag.startswith("device/")} == {
        "device/seconds": 4.0,
        "device/total": 8.0,
        "device/energy": 30.0,
        "device/part-1-clients": 2.0,
        "device/part-1-busy": 2.0,
        "device/part-1-link": 0.5,
        "device/part-1-idle": 6.0,
        "device/part-2-clients": 1.0,
        "device/part-2-busy": 4.0,
        "device/part-2-link": 1.0,
        "device/part-2-idle": 0.0,
    }
    on_clients = scalars(client_record(1))
    assert {tag: value for tag, value in on_clients.items() if tag.startswith("client-accuracy/")} == {
        "client-accuracy/exit-1": 0.5,
        "client-accuracy/exit-2": 0.7,
        "client-accuracy/mean": pytest.approx(0.6),
        "client-accuracy/majority": pytest.approx(0.3),
        "client-accuracy/spread": pytest.approx(0.1),
        "client-accuracy/sampled-mean": 0.7,
        "client-accuracy/sampled-spread": 0.0,
        "client-accuracy/tuned": 0.6,
        "client-accuracy/tuned-saved": 0.375,
    }
    assert not any(tag.startswith("accuracy/") for tag in on_clients)
