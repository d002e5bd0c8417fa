from xml.etree import ElementTree

import pytest

from benchmarks.containers import read

REPORT = """
<testsuites><testsuite><properties><property name="client_mb" value="61.5"/></properties>
<testcase name="test_demo" time="12.5"><properties><property name="server_mb" value="880.1"/></properties></testcase>
<testcase name="test_confined" time="3"/>
</testsuite></testsuites>
"""


def test_figures_of_a_report_are_those_of_its_tests() -> None:
    assert read(ElementTree.fromstring(REPORT)) == {
        "images": {"client_mb": 61.5},
        "tests": {"test_demo": {"whole_s": 12.5, "server_mb": 880.1}, "test_confined": {"whole_s": 3.0}},
    }


@pytest.mark.parametrize("mark", ["failure", "error", "skipped"])
def test_a_report_of_a_run_that_was_not_whole_is_refused(mark: str) -> None:
    report = REPORT.replace('time="3"/>', f'time="3"><{mark}/></testcase>')
    with pytest.raises(SystemExit, match="test_confined"):
        read(ElementTree.fromstring(report))
    with pytest.raises(SystemExit, match="all tests"):
        read(ElementTree.fromstring("<testsuites/>"))
