"""Images and compose files: schema, documented properties and, where installed, the checks of Docker and hadolint."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from common.flower.processes import PROJECT
from tests.docker.compose import DOCKER, copied, merged, read
from tests.docker.engine import megabytes

DOCKERFILE = DOCKER / "Dockerfile"
FILES = sorted(DOCKER.glob("compose*.yml"))


def test_compose_files_are_complete():
    names = [file.name for file in FILES]
    assert names == ["compose.gpu.yml", "compose.students.yml", "compose.tls.yml", "compose.yml"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.name))
def test_compose_files_follow_specification(file):
    # the Compose Specification's own schema, Apache-2.0
    jsonschema.validate(read(file.name), json.loads((Path(__file__).parent / "compose-spec.json").read_text()))


def test_schema_finds_mistake():
    wrong = {"services": {"a": {"image": "b", "comand": ["c"]}}}
    with pytest.raises(jsonschema.ValidationError, match="comand"):
        jsonschema.validate(wrong, json.loads((Path(__file__).parent / "compose-spec.json").read_text()))


@pytest.mark.parametrize(
    "names",
    [["compose.yml"], ["compose.yml", "compose.tls.yml"], ["compose.yml", "compose.gpu.yml"], ["compose.students.yml"]],
)
def test_docker_accepts_compose_files(names):
    docker = shutil.which("docker")
    if not docker or subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode:
        pytest.skip("docker compose is not installed")
    files = [word for name in names for word in ("-f", str(DOCKER / name))]
    done = subprocess.run([docker, "compose", *files, "config", "-q"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_device_has_own_limits_capacity_and_volume():
    demo = read("compose.yml")
    clients = {name: service for name, service in demo["services"].items() if name.startswith("client-")}
    assert len(clients) == 4
    options = [service["command"] for service in clients.values()]
    assert len({words[words.index("--capacity") + 1] for words in options}) == 4
    assert [words[words.index("--client-id") + 1] for words in options] == ["0", "1", "2", "3"]
    for name, service in clients.items():
        assert {"cpus", "memory"} <= service["deploy"]["resources"]["limits"].keys()
        assert service["volumes"] == [f"{name}:/state"]
        assert name in demo["volumes"]
    assert demo["services"]["server"]["volumes"] == ["state:/state"]


def test_tls_devices_get_only_own_key_and_reach_only_proxy():
    demo, tls = read("compose.yml"), read("compose.tls.yml")
    assert tls["services"]["server"]["networks"] == ["inside"]
    proxy = tls["services"]["proxy"]
    assert (proxy["networks"], proxy["ports"]) == (["inside", "devices"], ["8443:8443", "8009:8009", "8010:8010"])
    assert "./streams.conf:/etc/earlybloom/streams.conf:ro" in proxy["volumes"]
    for number in range(4):
        service = tls["services"][f"client-{number}"]
        assert [volume["volume"]["subpath"] for volume in service["volumes"]] == [f"devices/device-{number}"]
        assert "proxy:8443" in service["command"]
        assert demo["services"][f"client-{number}"]["networks"] == ["devices"]
    for service in tls["services"].values():
        assert "--insecure" not in service.get("command", [])


def test_images_are_slim_unprivileged_and_have_health_checks():
    text = re.sub(r"\\\n", " ", DOCKERFILE.read_text())
    assert set(re.findall("^FROM (\\S+) AS", text, re.MULTILINE)) == {
        "scratch",
        "python:3.11-slim",
        "torch",
        "packages",
    }
    for image in ("client", "server"):
        stage = text[text.index(f"AS {image}\n") :].split("\nFROM ")[0]
        assert "USER 10001:10001" in stage
        assert "healthy.py" in stage
    assert all((PROJECT / name).exists() for name in copied())


def test_services_have_read_only_files_and_no_privileges():
    services = read("compose.yml", "compose.tls.yml")["services"]
    for service in services.values():
        assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
        assert service["security_opt"] == ["no-new-privileges:true"]
    assert services["proxy"]["user"] == "10001:10001"
    proxy = [volume["target"] for volume in services["proxy"]["volumes"] if isinstance(volume, dict)]
    assert proxy == [f"/certificates/{name}" for name in ("ca.pem", "server.pem", "server.key")]


def test_build_context_holds_only_what_images_copy():
    sent = {line[1:] for line in (PROJECT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert sent == copied()


def test_files_are_merged_like_compose():
    assert merged({"a": [1], "command": ["x"]}, {"a": [2], "command": ["y"], "b": 3}) == {
        "a": [1, 2], "command": ["y"], "b": 3,
    }  # fmt: skip
    server = read("compose.yml", "compose.tls.yml", env={"TORCH_BACKEND": "cu128"})["services"]["server"]
    assert server["volumes"] == ["state:/state", "certificates:/certificates:ro"]
    assert (server["networks"], server["ports"]) == (["inside"], [])
    assert "--insecure" not in server["command"]
    assert server["build"]["args"]["TORCH_BACKEND"] == "cu128"


@pytest.mark.parametrize("added", ["compose.tls.yml", "compose.gpu.yml"])
def test_every_image_is_built_once_and_own_images_never_pulled(added: str) -> None:
    services = read("compose.yml", added)["services"].values()
    ours = [service for service in services if service["image"].startswith("earlybloom-")]
    assert sorted(service["image"] for service in ours if "build" in service) == [
        "earlybloom-client", "earlybloom-server",
    ]  # fmt: skip
    assert all(service["pull_policy"] == "never" for service in ours if "build" not in service)


@pytest.mark.parametrize("names", [["compose.yml"], ["compose.yml", "compose.tls.yml"]])
def test_only_run_ends_among_started_services(names):
    """`--abort-on-container-exit` stops all services when the first one ends, so only the run may end."""
    services = read(*names)["services"]
    ends = {name for name, service in services.items() if "restart" not in service and "profiles" not in service}
    assert ends == {"run"}
    waited_for = {other for service in services.values() for other in service.get("depends_on", [])}
    assert waited_for <= {name for name, service in services.items() if "profiles" not in service}


def test_readme_has_commands_of_compose_files():
    readme = (DOCKER / "README.md").read_text()
    typed = [
        line.removeprefix("#   ")
        for file in FILES
        for line in file.read_text().splitlines()
        if re.match("#   (docker|export) ", line)
    ]
    assert len(typed) == 10
    assert [line for line in typed if line not in readme] == []


def test_hadolint_accepts_dockerfile():
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin")
    if not hadolint:
        pytest.skip("hadolint is not installed")
    done = subprocess.run([hadolint, "--no-color", str(DOCKERFILE)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize(("text", "amount"), [("512KiB", 0.524288), ("1.5GiB", 1610.612736), ("0B", 0.0), ("--", None)])
def test_memory_is_read_as_the_engine_writes_it(text, amount):
    assert megabytes(text) == amount
