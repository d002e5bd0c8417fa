# All files stay in this folder: the virtual environment, Flower's home, runs and caches.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export FLWR_HOME := $(CURDIR)/.flwr

.PHONY: setup demo test lint test-slow test-docker proto clean

setup: $(VENV)/.complete

$(VENV)/.complete: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[simulation,report,metrics,export,dev]'
	touch $@

demo: setup
	$(BIN)/python -m server compare --preset demo --methods eefl,darkdistill,exclusivefl --in-process --parallel 2

# two processes: one with all tests that start processes of their own, which mostly wait, and one with the others
test: setup
	$(BIN)/python -m pytest --numprocesses 2 --dist loadscope

test-slow: setup
	$(BIN)/python -m pytest -m slow

# builds the images and runs both stacks on the engine that DOCKER_HOST names; TORCH_BACKEND as in docker/Dockerfile
test-docker: setup
	$(BIN)/python -m pytest -m docker tests/docker

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# common/rpc/*_pb2* are in the repository, so that a device needs no compiler
proto: setup
	$(BIN)/python -m grpc_tools.protoc --proto_path=. --python_out=. --pyi_out=. common/rpc/split.proto common/rpc/students.proto common/rpc/rounds.proto

clean:
	rm -rf $(VENV) .flwr .cache/earlybloom .pytest_cache .mypy_cache .ruff_cache
