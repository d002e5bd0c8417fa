"""A shifted clock is off by the given seconds, and waits stay unchanged."""

import os
import subprocess
import sys
import time

import pytest

from tests.support.clocks import clock_off_by, clocks_available

CODE = """
import datetime, threading, time
begun = time.monotonic()
time.sleep(0.05)
threading.Event().wait(0.05)
print(time.time(), datetime.datetime.now(datetime.UTC).timestamp(), time.monotonic() - begun, time.monotonic())
"""


@pytest.mark.skipif(bool(clocks_available()), reason=clocks_available())
@pytest.mark.parametrize("seconds", [0, -240, 3600])
def test_only_time_of_day_is_shifted(seconds: int) -> None:
    before = time.time(), time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", CODE], env=os.environ | clock_off_by(seconds), capture_output=True, text=True,
        check=False, timeout=60,
    )  # fmt: skip
    after = time.time(), time.monotonic()
    assert done.returncode == 0, done.stderr
    timed, dated, waited, monotonic = map(float, done.stdout.split())
    assert before[0] <= timed - seconds <= dated - seconds <= after[0]
    assert waited >= 0.1
    assert before[1] <= monotonic <= after[1]
