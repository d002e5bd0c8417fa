"""What Docker costs and takes: the figures that `make test-docker` measures while it checks.

    make test-docker PYTEST_ADDOPTS=--junitxml=/tmp/docker.xml
    python -m benchmarks.containers /tmp/docker.xml

"tests" are the seconds of each test and what it measured, "images" their sizes. Exit codes, and that runs end whole,
are what the tests check (`tests/docker/test_engine.py`).
"""

import argparse
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from benchmarks.common import save


def read(report: ElementTree.Element) -> dict[str, Any]:
    """Return the figures of a report of pytest; raises `SystemExit` if a test failed or none ran on an engine."""
    cases = list(report.iter("testcase"))
    ended = {case.get("name"): [child.tag for child in case if child.tag != "properties"] for case in cases}
    unfit = [name for name, tags in ended.items() if {"failure", "error", "skipped"} & set(tags)]
    if not cases or unfit:
        raise SystemExit(f"error: {unfit or 'all tests'} failed or did not run: only a whole run on an engine counts")
    return {
        "images": {name: value for suite in report.iter("testsuite") for name, value in _properties(suite).items()},
        "tests": {
            str(case.get("name")): {"whole_s": float(case.get("time", 0)), **_properties(case)} for case in cases
        },
    }


def _properties(element: ElementTree.Element) -> dict[str, float]:
    found = element.findall("properties/property")
    return {str(one.get("name")): float(str(one.get("value"))) for one in found}


def main() -> None:
    """Read the report and save its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path)
    print(save("docker", read(ElementTree.parse(parser.parse_args().report).getroot())))


if __name__ == "__main__":
    main()
