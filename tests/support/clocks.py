"""Processes whose wall clock is off, for tests: a library that is loaded before C's own and shifts what it says.

Only the time of day is shifted: Python waits by a clock that nobody sets. libfaketime shifts that one as well, or has
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
    """Return the environment of a process whose clock is ahead by so many seconds, or behind."""
    return {"LD_PRELOAD": str(_library()), "CLOCK_OFFSET": str(seconds)}


def clocks_available() -> str:
    """Return why no clock can be shifted here; empty if it can be."""
    return "" if shutil.which("cc") and Path("/proc/self").exists() else "there is no C compiler `cc`, or no Linux"


@cache
def _library() -> Path:
    folder = Path(mkdtemp(prefix="clock-"))
    (folder / "clock.c").write_text(SOURCE)
    library = folder / "clock.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", str(library), str(folder / "clock.c")], check=True)
    return library
