"""What a simulation and a deployment need of devices, before anything starts."""

from pathlib import Path

import pytest

from common.errors import UserError
from server.commands.check import check_run

TIMED = {"run.name": "timed", "clients.clock": "simulated"}


def test_simulation_by_the_simulated_clock_needs_devices(tmp_path: Path):
    with pytest.raises(UserError, match=r"clients\.clock is 'simulated': set clients\.devices, such as pi4"):
        check_run(TIMED, tmp_path)
    assert check_run({**TIMED, "clients.devices": "pi4"}, tmp_path).clients.devices == "pi4"


def test_deployment_has_devices_of_its_own(tmp_path: Path):
    with pytest.raises(UserError, match=r"clients\.devices is 'pi4', but real devices declare their own capacity"):
        check_run({**TIMED, "clients.devices": "pi4"}, tmp_path, here=False)
    assert check_run(TIMED, tmp_path, here=False).clients.clock == "simulated"
