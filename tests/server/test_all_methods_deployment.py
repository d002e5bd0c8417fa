"""The four methods on four unequal devices with keys and TLS, one after another on one server; one between hosts."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from common.rpc.secrets import CERTIFICATE
from common.storage.model_file import load_model
from server.__main__ import main
from strategies.distree.model.stored import load_student, load_students, student_file
from tests.support.field import PATIENCE, Field, assert_complete, trained
from tests.support.machines import settings
from tests.support.namespaces import namespaces_available, network

pytestmark = [pytest.mark.slow, pytest.mark.deployment, pytest.mark.timeout(1200)]
DEVICES = {f"device-{n}": f"depth={n + 1},cut={n + 1},student={n + 1}" for n in range(4)}
NETWORK = ("data.limit=240", "network.name=resnet_slim", "network.width=2")
RUN = (
    *NETWORK, "run.rounds=2", "clients.count=4", "clients.per-round=4", "round.min-nodes=4", "round.deadline=300",
    "round.wait=300", "stream.patience=240", "stream.tls=true",
)  # fmt: skip
METHODS = {
    "darkdistill": ("darkdistill.server-epochs=1", "darkdistill.distill-steps=1"),
    "cafedistill": ("data.client-test=0.25",),
    "hetero_splitee": ("data.client-test=0.25", "splitee.cuts=1,2,3,4"),
}
IMAGES = 20


@pytest.fixture(scope="module")
def field(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Field]:
    """A server that accepts registered keys only; the last device's key was registered while the server ran."""
    field = Field(tmp_path_factory.mktemp("field"), dict(list(DEVICES.items())[:3]), keys=True)
    try:
        field.serve()
        field.capacities |= DEVICES
        field.make_certificates("device-3")
        registered = field.machines.run(
            "server", "register", "--superlink", f"{field.address}:{field.machines.port}",
            "--state", str(field.machines.folder / "server"), "--certificates", str(field.certificates),
        )  # fmt: skip
        assert (registered.returncode, registered.stdout) == (0, "registered: device-3\n"), registered.stderr
        for name in DEVICES:
            field.join(name)
        yield field
    finally:
        field.close()


def assert_all_took_part(folder: Path, rounds: int = 2, devices: int = 4) -> None:
    counted = assert_complete(folder, rounds)
    assert [trained(round_) for round_ in counted] == [devices] * rounds
    assert all(len(round_["clients"]) == devices and not round_["failures"] for round_ in counted)  # a part for each


@pytest.mark.parametrize("method", METHODS)
def test_method_trains_on_four_unequal_devices(field, method):
    folder = field.submit(method, f"run.strategy={method}", *RUN, *METHODS[method])
    field.wait_completed(method)
    assert_all_took_part(folder)
    for name in DEVICES:
        (stored,) = (field.machines.folder / name / method).rglob("model.safetensors")
        assert load_model(stored).run == method


def test_distree_trains_and_its_devices_answer(field, tmp_path):
    teacher = tmp_path / "teacher"
    assert main(["teacher", "--out", str(teacher), "--epochs", "2", *settings(*NETWORK)]) == 0
    folder = field.submit(
        "distree", "run.strategy=distree", *RUN, f"distree.teacher={teacher}", "distree.students=4",
        "distree.kept-edges=0.3",
    )  # fmt: skip
    field.wait_completed("distree")
    assert_all_took_part(folder)
    token, devices = tmp_path / "token", list[str]()
    for number, name in enumerate(DEVICES, start=1):
        delivered = student_file(Path(), number).name
        (student,) = (field.machines.folder / name / "distree").rglob(delivered)
        assert load_student(student).number == number
        keys = field.machines.folder / name / "keys"
        field.machines.start(
            f"student-{number}", "client", "serve-student", "--model", str(student), "--tls",
            "--token-file", str(token), "--certificate-dir", str(keys), PYTHONUNBUFFERED="1",
        )  # fmt: skip
        field.machines.wait_for(f"student-{number}", "answers at", PATIENCE)
        address = field.machines.log(f"student-{number}").read_text().splitlines()[0].split()[-1]
        devices += ["--student", f"{number}={address}", "--certificate", f"{number}={keys / CERTIFICATE}"]
    answers = tmp_path / "answers.json"
    done = field.machines.run(
        "server", "infer", "--model", str(folder / "final"), "--token-file", str(token), "--dataset", "digits",
        "--limit", str(IMAGES), "--deadline", "60", "--json", str(answers), *devices,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    images = json.loads(answers.read_text())["images"]
    assert len(images) == IMAGES
    students = load_students(folder / "final").students.spec.numbers
    assert all(image["exits"].keys() == {str(k) for k in students} and not image["missing"] for image in images)


@pytest.mark.skipif(bool(namespaces_available()), reason=namespaces_available())
def test_darkdistill_trains_over_links_with_delay_and_loss(tmp_path):
    devices = dict(list(DEVICES.items())[:2])
    with ExitStack() as stack:
        hosts = stack.enter_context(network(["server", *devices]))
        field = Field(tmp_path, devices, keys=True, hosts=hosts)
        stack.callback(field.close)
        for name in devices:
            hosts[name].link(delay=0.03, loss=0.01)
        field.serve()
        for name in devices:
            field.join(name)
        pairs = ("clients.count=2", "clients.per-round=2", "round.min-nodes=2")
        folder = field.submit("far", "run.strategy=darkdistill", *RUN, *pairs, *METHODS["darkdistill"])
        field.wait_completed("far")
        assert_all_took_part(folder, devices=2)
