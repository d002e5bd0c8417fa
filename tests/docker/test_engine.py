"""Both stacks on a Docker engine, with the README's commands: they complete, survive kills, and stop in time."""

import re
import signal
import time
from collections.abc import Callable, Iterator

import pytest

from tests.docker.engine import RUN, Stack, docker, missing, peaks, size_mb
from tests.support.deployment import wait_until

CLIENTS = [f"client-{number}" for number in range(4)]
WHOLE = {"1": 1, "2": 1, "3": 1, "4": 1}  # clients of the demo by depth
ROUNDS = 30  # more than end before a test has killed or stopped something
LONG = ["-c", f"run.rounds={ROUNDS}"]
SPLIT = [
    "-c", "run.strategy=hetero_splitee", "-c", "run.name=split", "-c", "run.rounds=2", "-c", "stream.host=proxy",
    "-c", "stream.bind=0.0.0.0", "-c", "stream.port=8009",
]  # fmt: skip
RESUME = ["submit", "--superlink", "server:8000", "--insecure", "--state", "/state", "--resume"]
PATIENCE = 300.0  # seconds, also for a busy machine
STOP = 10.0  # seconds that `docker stop` gives
pytestmark = [pytest.mark.docker, pytest.mark.timeout(1500)]
Record = Callable[[str, object], None]


@pytest.fixture(scope="module", autouse=True)
def images(record_testsuite_property: Record) -> None:
    if reason := missing():
        pytest.skip(reason)
    Stack("compose.yml").compose("build", seconds=1400)
    for image in ("earlybloom-server", "earlybloom-client"):
        record_testsuite_property(f"{image}_mb", size_mb(image))


@pytest.fixture
def demo() -> Iterator[Stack]:
    stack = Stack("compose.yml")
    yield stack
    stack.close()


@pytest.fixture
def students() -> Iterator[Stack]:
    stack = Stack("compose.students.yml")
    yield stack
    stack.close()


@pytest.fixture
def tls() -> Iterator[Stack]:
    stack = Stack("compose.yml", "compose.tls.yml")
    stack.compose("run", "--rm", "certificates")
    yield stack
    stack.close()


def devices(stack: Stack) -> None:
    """Start the server and all devices, and wait until they are healthy."""
    stack.compose("up", "--detach", "--wait", "--wait-timeout", "300", *CLIENTS, seconds=400)


def begin(stack: Stack, *words: str) -> str:
    """Start the devices and, as the container `run`, a run; return the run's name after its first round."""
    devices(stack)
    stack.compose("run", "--detach", "--no-deps", "--name", RUN, "run", *stack.command("run"), *words)
    wait_until(lambda: "runs" in stack.server("ls", "/state"), PATIENCE, "the run does not start")
    name = only_run(stack)
    wait_until(lambda: stack.rounds(name), PATIENCE, "the first round does not end")
    return name


def exit_code_of_run() -> str:
    """Wait for the end of the run that `begin` started."""
    return docker("wait", RUN, seconds=900).stdout.strip()


def assert_complete(stack: Stack, run: str, rounds: int) -> None:
    assert [event["clients"] for event in stack.rounds(run)] == [WHOLE] * rounds


def test_demo_completes_with_readme_command(demo, record_property):
    begun = time.monotonic()
    with peaks() as memory:
        done = demo.up("--build")
    record_property("seconds", time.monotonic() - begun)
    for name, most in memory.items():
        record_property(f"{name}_mb", most)
    assert done.returncode == 0
    assert_complete(demo, only_run(demo), 5)
    assert {name: demo.exit_code(name) for name in ["run", "server", *CLIENTS]} == dict.fromkeys(
        ["run", "server", *CLIENTS], 0
    )


def only_run(stack: Stack) -> str:
    (name,) = stack.server("ls", "/state/runs").split()
    return name


def test_containers_are_confined(demo):
    devices(demo)
    for name in ["server", *CLIENTS]:
        found = demo.inspect(name)
        host = found["HostConfig"]
        assert (host["ReadonlyRootfs"], host["CapDrop"]) == (True, ["ALL"])
        assert host["SecurityOpt"] == ["no-new-privileges:true"]
        assert demo.compose("exec", name, "id").stdout.startswith("uid=10001(bloom) gid=10001(bloom) groups=10001")


def test_capacity_follows_container_limit(demo):
    printed = demo.compose("run", "--rm", "--no-deps", "client-3", "probe").stdout
    found = re.search(r"memory (\d+) MB", printed)
    assert found, printed
    assert float(found[1]) <= 4 * 2**30 / 1e6 / 2


def test_container_of_built_image_does_not_end_stack(demo):
    """Compose labels the images that it builds, and `up` follows all containers with its project's label."""
    begun = demo.compose_background("up", "--abort-on-container-exit", *CLIENTS)
    try:
        wait_until(lambda: all(demo.running(name) for name in CLIENTS), PATIENCE, "the stack does not start")
        docker("run", "--rm", "--entrypoint", "true", "earlybloom-client")
        time.sleep(5)
        assert begun.poll() is None
        assert all(demo.running(name) for name in CLIENTS)
    finally:
        begun.send_signal(signal.SIGINT)
        begun.wait(timeout=120)


def test_trained_client_and_run_stop_in_time(demo, record_property):
    begin(demo, *LONG)
    seconds, code = demo.stop("client-2")
    record_property("client_s", seconds)
    assert (seconds < STOP, code) == (True, 0), seconds
    begun = time.monotonic()
    docker("stop", "--time", "10", RUN)
    record_property("run_s", time.monotonic() - begun)
    assert exit_code_of_run() == "130"
    listed = demo.compose(
        "exec", "--env", "FLWR_HOME=/state/.flwr", "server", "flwr", "list", "server-8000", "--format", "json"
    )
    assert "finished:stopped" in listed.stdout


def test_killed_client_comes_back_with_its_personal_head(demo):
    name = begin(demo, "-c", "run.strategy=fedper", "-c", "run.rounds=10")
    demo.kill("client-1")
    assert demo.kept("client-1")
    demo.compose("up", "--detach", "--no-deps", "client-1")
    assert exit_code_of_run() == "0"
    assert len(demo.rounds(name)) == 10
    assert demo.rounds(name)[-1]["clients"] == WHOLE
    # the server takes a client's personal head as committed only if the client still has the one before
    last = f"/state/runs/{name}/checkpoints/round-000010.safetensors"
    words = "import sys; from pathlib import Path; from common.storage.files import read_tensors; "
    committed = demo.server("python", "-c", words + "print(read_tensors(Path(sys.argv[1]))[1]['committed']['1'])", last)
    assert committed.strip() == "10"


def test_killed_server_resumes(demo):
    name = begin(demo, *LONG)
    demo.kill("server")
    assert 0 < len(demo.rounds(name)) < ROUNDS
    docker("stop", "--time", "10", RUN)
    devices(demo)
    demo.compose("run", "--rm", "--no-deps", "run", *RESUME, f"/state/runs/{name}", seconds=900)
    assert_complete(demo, name, ROUNDS)


def test_tls_stack_completes_and_split_training_passes_proxy(tls, record_property):
    begun = time.monotonic()
    done = tls.up()
    record_property("seconds", time.monotonic() - begun)
    assert done.returncode == 0
    assert_complete(tls, only_run(tls), 5)
    devices(tls)
    assert tls.compose("exec", "proxy", "ls", "/certificates").stdout.split() == ["ca.pem", "server.key", "server.pem"]
    assert tls.compose("exec", "proxy", "id").stdout.startswith("uid=10001 gid=10001")
    begun = time.monotonic()
    tls.submit(*SPLIT, seconds=900)
    record_property("split_s", time.monotonic() - begun)
    assert all(event["terms"]["missing"] == 0 and event["terms"]["batches"] for event in tls.rounds("split"))
    assert len(tls.rounds("split")) == 2


def test_students_in_containers_answer_and_one_may_be_gone(students):
    both = students.compose("run", "--rm", "infer", seconds=900).stdout
    assert "200 images" in both
    assert "is missing" not in both
    students.stop("student-2")
    one = students.compose("run", "--rm", "--no-deps", "infer").stdout
    assert "student 2 is missing in 200 answers" in one
    assert "have no label" not in one
