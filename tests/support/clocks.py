"""Processes with a wrong wall clock, for tests: a preloaded library shifts the time that C's functions return.

It shifts the time of day only: Python waits by the monotonic clock. libfaketime shifts that clock too, or makes
Python's `sleep` fail.
"""

import shutil
import subprocess
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

SOURCE = r"""
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long offset(void) { const char *text = getenv("CLOCK_OFFSET"); return text ? atol(text) : 0; }

int clock_gettime(clockid_t clock, struct timespec *now) {
    int failed = syscall(SYS_clock_gettime, clock, now);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += offset();
    return failed;
}

int gettimeofday(struct timeval *now, void *zone) {
    struct timespec exact;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &exact);
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *stored) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    if (stored) *stored = exact.tv_sec;
    return exact.tv_sec;
}
"""


def clock_off_by(seconds: int) -> dict[str, str]:
    """Return the environment of a process whose clock is this many seconds ahead (negative: behind)."""
    return {"LD_PRELOAD": str(_library()), "CLOCK_OFFSET": str(seconds)}


def clocks_available() -> str:
    """Return why clocks cannot be shifted here; empty if they can."""
    return (
        ""
        if shutil.which("cc") and Path("/proc/self").exists()
        else "shifting clocks needs Linux and a C compiler `cc`"
    )


@cache
def _library() -> Path:
    folder = Path(mkdtemp(prefix="clock-"))
    (folder / "clock.c").write_text(SOURCE)
    library = folder / "clock.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", str(library), str(folder / "clock.c")], check=True)
    return library
