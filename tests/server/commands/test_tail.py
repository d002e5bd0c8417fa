"""Lines that appear while a file is looked at."""

import json
from pathlib import Path

import pytest

from common.storage.files import append_line, write_text
from server.commands.tail import Tail


def test_each_look_gives_what_is_new(tmp_path):
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
        assert tail.read() == []  # not ended yet
        stream.write(' 3}\n{"a": 4')
    assert tail.read() == [{"a": 3}]


def test_a_file_that_was_replaced_is_read_anew(tmp_path):
    file = tmp_path / "lines"
    tail = Tail(file)
    write_text(file, '{"a": 1}\n{"a": 2}\n{"a": 3')
    assert tail.read() == [{"a": 1}, {"a": 2}]
    write_text(file, '{"a": 1}\n')
    for number in (5, 6, 7):  # longer than before at the next look
        append_line(file, json.dumps({"a": number}))
    assert [event["a"] for event in tail.read()] == [1, 5, 6, 7]


def test_what_was_read_is_not_parsed_again(tmp_path, monkeypatch: pytest.MonkeyPatch):
    file, parsed, loads = tmp_path / "lines", list[bytes](), json.loads
    monkeypatch.setattr(json, "loads", lambda line: (parsed.append(line), loads(line))[1])
    tail = Tail(file)
    for number in range(3):
        append_line(file, str(number))
        tail.read()
    assert parsed == [b"0", b"1", b"2"]


def test_a_line_that_a_kill_cut_short_is_left_out(tmp_path: Path):
    file = tmp_path / "lines"
    file.write_text('{"a": 1}\n{"a"\n{"a": 2}\n')
    assert Tail(file).read() == [{"a": 1}, {"a": 2}]
