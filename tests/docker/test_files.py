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

IMAGES = sorted(DOCKER.glob("*.Dockerfile"))
FILES = sorted(DOCKER.glob("compose*.yml"))


def test_images_and_compose_files_are_complete():
    assert [file.name for file in IMAGES] == ["client.Dockerfile", "server.Dockerfile"]
    assert [file.name for file in FILES] == ["compose.gpu.yml", "compose.tls.yml", "compose.yml"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.name))
def test_compose_files_follow_specification(file):
    # the Compose Specification's own schema, Apache-2.0
    jsonschema.validate(read(file.name), json.loads((Path(__file__).parent / "compose-spec.json").read_text()))


def test_schema_finds_mistake():
    wrong = {"services": {"a": {"image": "b", "comand": ["c"]}}}
    with pytest.raises(jsonschema.ValidationError, match="comand"):
        jsonschema.validate(wrong, json.loads((Path(__file__).parent / "compose-spec.json").read_text()))


@pytest.mark.parametrize(
    "names", [["compose.yml"], ["compose.yml", "compose.tls.yml"], ["compose.yml", "compose.gpu.yml"]]
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
    assert (proxy["networks"], proxy["ports"]) == (["inside", "devices"], ["8443:8443", "8009:8009"])
    assert "./streams.conf:/etc/earlybloom/streams.conf:ro" in proxy["volumes"]
    for number in range(4):
        service = tls["services"][f"client-{number}"]
        assert [volume["volume"]["subpath"] for volume in service["volumes"]] == [f"devices/device-{number}"]
        assert "proxy:8443" in service["command"]
        assert demo["services"][f"client-{number}"]["networks"] == ["devices"]
    for service in tls["services"].values():
        assert "--insecure" not in service.get("command", [])


@pytest.mark.parametrize("file", IMAGES, ids=lambda file: str(file.name))
def test_images_are_slim_unprivileged_and_have_health_checks(file):
    lines = re.sub(r"\\\n", " ", file.read_text()).splitlines()
    words = {line.split()[0]: line for line in lines if line and not line.startswith("#")}
    assert words["FROM"] == "FROM python:3.11-slim"
    assert words["USER"].split()[1].isdecimal()
    assert "healthy.py" in words["HEALTHCHECK"]
    assert any("TORCH_INDEX" in line for line in lines if line.startswith("RUN"))
    copied = [word for line in lines if line.startswith("COPY") for word in line.split()[1:-1]]
    assert all((PROJECT / name).exists() for name in copied)


def test_build_context_holds_only_what_images_copy():
    sent = {line[1:] for line in (PROJECT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert sent == {*copied("client"), *copied("server")}


def test_files_are_merged_like_compose():
    assert merged({"a": [1], "command": ["x"]}, {"a": [2], "command": ["y"], "b": 3}) == {
        "a": [1, 2], "command": ["y"], "b": 3,
    }  # fmt: skip
    server = read("compose.yml", "compose.tls.yml", env={"TORCH_INDEX": "there"})["services"]["server"]
    assert server["volumes"] == ["state:/state", "certificates:/certificates:ro"]
    assert (server["networks"], server["ports"]) == (["inside"], [])
    assert "--insecure" not in server["command"]
    assert server["build"]["args"]["TORCH_INDEX"] == "there"


def test_every_image_is_built_once_and_own_images_never_pulled():
    services = read("compose.yml", "compose.tls.yml")["services"].values()
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
    assert len(typed) == 6
    assert [line for line in typed if line not in readme] == []


@pytest.mark.parametrize("file", IMAGES, ids=lambda file: str(file.name))
def test_hadolint_accepts_dockerfiles(file):
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin")
    if not hadolint:
        pytest.skip("hadolint is not installed")
    done = subprocess.run([hadolint, "--no-color", str(file)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
