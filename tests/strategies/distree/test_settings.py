import pytest

from common.capacity import Capacity
from common.errors import UserError
from strategies.distree.settings import DistrEESettings, read_device


def test_devices_are_declared_as_a_device_declares_itself() -> None:
    settings = DistrEESettings(students=3, devices="low; memory=512MB,compute=20GFLOPS ;bandwidth=10Mbps")
    assert settings.problems() == []
    assert [read_device(text) for text in settings.declared] == [
        Capacity(64e6, 1e9), Capacity(512e6, 20e9), Capacity(bandwidth=10e6),
    ]  # fmt: skip
    assert DistrEESettings().declared == ()


@pytest.mark.parametrize(
    ("devices", "message"),
    [
        ("low", "distree.devices names 1 devices, distree.students 2"),
        ("low;low;low", "distree.devices names 3 devices, distree.students 2"),
        ("low;", "distree.devices: '': write low, medium, high, or KEY=VALUE with memory, compute, bandwidth, such as"),
        ("low;huge", "distree.devices: 'huge': write low, medium, high, or KEY=VALUE with memory, compute, bandwidth"),
        ("low;depth=2", "distree.devices: 'depth=2': write low, medium, high, or KEY=VALUE with memory, compute, ba"),
        ("low;memory=1GB,cut=2", "distree.devices: 'memory=1GB,cut=2': write low, medium, high, or KEY=VALUE with"),
        ("low;memory=much", "distree.devices: memory='much' cannot be read: write a number with a unit"),
        ("auto;low", "distree.devices: 'auto' would measure the server: write what the device has"),
    ],
)
def test_devices_that_cannot_be_read_are_told(devices: str, message: str) -> None:
    (problem,) = DistrEESettings(devices=devices).problems()
    assert problem.startswith(message)


def test_widths_are_given_or_matched() -> None:
    (problem,) = DistrEESettings(devices="low;high", widths=(1, 2)).problems()
    assert problem.startswith("distree.devices decides the widths: leave distree.widths empty")
    with pytest.raises(UserError, match="would measure the server"):
        read_device("auto")
