"""The checked-in code equals the compiler's output for the checked-in description."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from common.rpc import rounds_pb2, split_pb2, students_pb2
from common.rpc.methods import INFER, OFFLOAD, TRAIN, WORK

PROJECT = Path(__file__).resolve().parents[3]


@pytest.mark.skipif(find_spec("grpc_tools") is None, reason="grpcio-tools is not installed")
def test_generated_code_is_up_to_date(tmp_path):
    command = ["-m", "grpc_tools.protoc", "--proto_path=.", f"--python_out={tmp_path}", f"--pyi_out={tmp_path}"]
    described = [str(file.relative_to(PROJECT)) for file in sorted((PROJECT / "common" / "rpc").glob("*.proto"))]
    subprocess.run([sys.executable, *command, *described], cwd=PROJECT, check=True)
    made = {file.relative_to(tmp_path): file.read_text() for file in tmp_path.rglob("*.py*")}
    assert {path.stem for path in made} == {"rounds_pb2", "split_pb2", "students_pb2"}
    assert len(made) == 6
    assert all(file in (PROJECT / "Makefile").read_text() for file in described)
    for path, text in made.items():
        assert (PROJECT / path).read_text() == text, f"{path} is old: run `make proto`"


def test_method_names_match_the_description():
    assert (TRAIN, OFFLOAD) == ("/earlybloom.Split/Train", "/earlybloom.Split/Offload")
    assert INFER == "/earlybloom.Students/Infer"
    assert WORK == "/earlybloom.rounds.Rounds/Work"


def test_every_message_has_header_and_data_field():
    for name in ("TrainMessage", "TrainReply", "OffloadRequest", "OffloadReply"):
        fields = split_pb2.DESCRIPTOR.message_types_by_name[name].fields_by_name
        assert fields["header"].message_type.name == "Header"
        assert fields["data"].number == 15
    header = split_pb2.DESCRIPTOR.message_types_by_name["Header"].fields_by_name
    assert set(header) == {"run", "client", "cut", "round", "version", "index"}


def test_large_field_of_every_message_is_that_of_framing():
    messages = {"InferRequest": students_pb2, "InferReply": students_pb2} | dict.fromkeys(
        ("NodeFrame", "ServerFrame"), rounds_pb2
    )
    for name, module in messages.items():
        fields = module.DESCRIPTOR.message_types_by_name[name].fields_by_name
        assert fields["data"].number == max(field.number for field in fields.values()) == 15
