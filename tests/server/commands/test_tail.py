"""Following a file while another process writes lines."""

import json
from pathlib import Path

import pytest

from common.storage.files import append_line, write_text
from server.commands.tail import Tail


def test_tail_returns_new_lines(tmp_path):
    file = tmp_path / "lines"
    tail = Tail(file)
    assert tail.read() == []
    append_line(file, '{"a": 1}')
    append_line(file, '{"a": 2}')
    assert tail.read() == [{"a": 1}, {"a": 2}]
    assert tail.read() == []
    with file.open("a") as stream:
        stream.write('{"a":')
        stream.flush()
        assert tail.read() == []  # not complete yet
        stream.write(' 3}\n{"a": 4')
    assert tail.read() == [{"a": 3}]


def test_tail_reads_a_replaced_file_from_its_start(tmp_path):
    file = tmp_path / "lines"
    tail = Tail(file)
    write_text(file, '{"a": 1}\n{"a": 2}\n{"a": 3')
    assert tail.read() == [{"a": 1}, {"a": 2}]
    write_text(file, '{"a": 1}\n')
    for number in (5, 6, 7):  # longer than before at the next read
        append_line(file, json.dumps({"a": number}))
    assert [event["a"] for event in tail.read()] == [1, 5, 6, 7]


def test_tail_parses_every_line_once(tmp_path, monkeypatch: pytest.MonkeyPatch):
    file, parsed, loads = tmp_path / "lines", list[bytes](), json.loads
    monkeypatch.setattr(json, "loads", lambda line: (parsed.append(line), loads(line))[1])
    tail = Tail(file)
    for number in range(3):
        append_line(file, str(number))
        tail.read()
    assert parsed == [b"0", b"1", b"2"]


def test_tail_skips_a_line_that_a_kill_cut_short(tmp_path: Path):
    file = tmp_path / "lines"
    file.write_text('{"a": 1}\n{"a"\n{"a": 2}\n')
    assert Tail(file).read() == [{"a": 1}, {"a": 2}]
