"""The deployment agrees with itself and with the settings. No container engine is needed, and none is used."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic_settings import BaseSettings

from service.settings.gateway import AdmissionSettings, AuthSettings, GatewaySettings, HttpSettings
from service.settings.groups import LogSettings, RedisSettings, StorageSettings, WebhookSettings
from service.settings.sender import DeliverySettings, SenderSettings
from service.settings.telemetry import MetricsSettings, TracingSettings
from service.settings.uploads import UploadSettings
from service.settings.worker import AgentSettings, WorkerSettings
from tests.architecture.repository import ROOT, name_of, tracked_files
from tests.balancer import CONFIGURATION, HAPROXY

COMPOSE = ROOT / "docker-compose.yml"
DOCKERFILES = [path for path in tracked_files() if path.suffix == ".Dockerfile"]
GROUPS = (
    AdmissionSettings, AgentSettings, AuthSettings, HttpSettings, LogSettings, MetricsSettings, RedisSettings,
    StorageSettings, TracingSettings,
    UploadSettings, WebhookSettings,
)  # fmt: skip

#: `${NAME}`, `${NAME:-default}`, `${NAME:?why it is needed}`.
INTERPOLATION = re.compile(r"\$\{(?P<name>\w+)(?::(?P<kind>[-?])(?P<rest>[^}]*))?\}")
SECRETS = {"REDIS_PASSWORD": "a1b2", "S3_ACCESS_KEY": "c3d4", "S3_SECRET_KEY": "e5f6"}


def interpolated(variables: dict[str, str]) -> dict[str, Any]:
    """The file as `docker compose` reads it in this environment. KeyError where a required variable is missing."""

    def value(match: re.Match[str]) -> str:
        name, kind, rest = match["name"], match["kind"], match["rest"]
        return variables.get(name) or (rest if kind == "-" else variables[name])

    return yaml.safe_load(INTERPOLATION.sub(value, COMPOSE.read_text("utf-8")))


@pytest.fixture(scope="module")
def services() -> dict[str, dict[str, Any]]:
    return interpolated(SECRETS)["services"]


def variables_of(dockerfile: Path) -> dict[str, str]:
    """What its `ENV` sets."""
    text = dockerfile.read_text("utf-8").replace("\\\n", " ")
    return dict(pair.split("=", 1) for line in re.findall(r"^ENV (.+)$", text, re.MULTILINE) for pair in line.split())


def named_settings() -> set[str]:
    return {
        f"{group.model_config.get('env_prefix', '')}{name}".upper() for group in GROUPS for name in group.model_fields
    }


def default_of(group: type[BaseSettings], name: str) -> float:
    return float(group.model_fields[name].default)


def seconds(text: str) -> float:
    assert text.endswith("s")
    return float(text.removesuffix("s"))


def balancer_timeout(name: str) -> float:
    found = re.search(rf"^ +(?:timeout )?{name} (\w+)$", CONFIGURATION.read_text("utf-8"), re.MULTILINE)
    assert found, name
    return seconds(found[1])


def test_compose_file_is_of_the_compose_specification(tmp_path: Path) -> None:
    def check(path: Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(path)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    done = check(COMPOSE)
    assert done.returncode == 0, done.stdout
    wrong = tmp_path / "wrong.yml"
    wrong.write_text(COMPOSE.read_text("utf-8").replace("restart:", "restarts:"))
    assert check(wrong).returncode == 1


def test_dockerfiles_have_no_finding() -> None:
    assert len(DOCKERFILES) == 2
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run(
        [hadolint, "--no-color", *DOCKERFILES], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.skipif(HAPROXY is None, reason="haproxy is not installed; Debian has it as a package of that name")
def test_balancer_takes_its_configuration_without_a_warning() -> None:
    done = subprocess.run(
        [str(HAPROXY), "-c", "-dW", "-f", str(CONFIGURATION)], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr


def test_secrets_come_from_the_environment_and_nothing_starts_without_them() -> None:
    example = (ROOT / "deploy" / "example.env").read_text("utf-8")
    told = dict(re.findall(r"^#?([A-Z][A-Z0-9_]*)=(.*)$", example, re.MULTILINE))
    read = {match["name"]: match["kind"] for match in INTERPOLATION.finditer(COMPOSE.read_text("utf-8"))}
    assert set(told) == set(read)
    assert {name for name, kind in read.items() if kind == "?"} == set(SECRETS)
    assert {told[name] for name in SECRETS} == {""}
    for name in SECRETS:
        with pytest.raises(KeyError, match=name):
            interpolated({other: value for other, value in SECRETS.items() if other != name})
    ignored = subprocess.run(["git", "-C", str(ROOT), "check-ignore", "-q", ".env"], check=False)
    assert ignored.returncode == 0


@pytest.mark.parametrize(
    ("service", "settings"), [("gateway", GatewaySettings), ("worker", WorkerSettings), ("sender", SenderSettings)]
)
def test_processes_take_the_environment_that_they_get(
    services: dict[str, dict[str, Any]],
    service: str,
    settings: type[GatewaySettings | WorkerSettings | SenderSettings],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = variables_of(ROOT / services[service]["build"]["dockerfile"]) | services[service]["environment"]
    for name in [name for name in os.environ if name.startswith(("DARKROOM_", "PORT", "AUTH"))]:
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    read = settings.from_environment()
    assert read.redis.url.get_secret_value() == "redis://:a1b2@valkey:6379/0"
    if not isinstance(read, SenderSettings):
        assert (read.storage.endpoint, read.storage.public_endpoint) == ("http://s3:8333", "http://localhost:8333")
    assert {name for name in given if name.startswith("DARKROOM_")} <= named_settings()


def test_processes_have_the_time_that_they_take_to_stop(services: dict[str, dict[str, Any]]) -> None:
    grace = {
        name: seconds(service["stop_grace_period"])
        for name, service in services.items()
        if "stop_grace_period" in service
    }
    assert grace["gateway"] > default_of(HttpSettings, "shutdown_grace_s")
    assert grace["sender"] > default_of(DeliverySettings, "timeout_s") + 2
    assert grace["worker"] == grace["worker-gpu"] > default_of(AgentSettings, "drain_s")
    assert grace["balancer"] > balancer_timeout("hard-stop-after") > default_of(HttpSettings, "wait_cap_s")


def test_balancer_is_as_patient_as_gateways_need() -> None:
    assert balancer_timeout("http-keep-alive") < default_of(HttpSettings, "keep_alive_s")
    assert balancer_timeout("server") > default_of(HttpSettings, "wait_cap_s")
    assert balancer_timeout("client") >= balancer_timeout("server")


@pytest.mark.parametrize("path", DOCKERFILES, ids=name_of)
def test_images_take_what_is_there_and_nothing_else(path: Path) -> None:
    text = path.read_text("utf-8")
    copied = {word for line in re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE) for word in line.split()}
    assert copied >= {"pyproject.toml", "constraints.txt", "service"}
    assert {word for word in copied if not (ROOT / word).exists()} == set()
    admitted = path.with_name(f"{path.name}.dockerignore").read_text("utf-8").splitlines()
    assert admitted[0] == "*"
    assert {line.removeprefix("!") for line in admitted if line.startswith("!")} == copied
    assert ("worker" in copied) == (path.stem == "worker")


@pytest.mark.parametrize("path", DOCKERFILES, ids=name_of)
def test_images_run_modules_that_exist_as_nobody_in_particular(path: Path) -> None:
    text = path.read_text("utf-8")
    command = json.loads(re.findall(r"^CMD (\[.+\])$", text, re.MULTILINE)[-1])
    assert command[:3] == ["python", "-P", "-m"]
    module = ROOT / command[3].replace(".", "/")
    assert module.with_suffix(".py").exists() or (module / "__main__.py").exists()
    assert re.findall(r"^USER (\S+)$", text, re.MULTILINE)[-1] == "10001:10001"
    assert "HEALTHCHECK" in text


def test_sender_runs_a_module_that_exists(services: dict[str, dict[str, Any]]) -> None:
    command = services["sender"]["command"]
    assert command[:3] == ["python", "-P", "-m"]
    assert (ROOT / command[3].replace(".", "/") / "__main__.py").exists()


def test_what_is_mounted_lies_in_the_repository(services: dict[str, dict[str, Any]]) -> None:
    compose = interpolated(SECRETS)
    mounted = [volume.split(":")[0] for service in services.values() for volume in service.get("volumes", ())]
    folders = {source for source in mounted if source.startswith(".")}
    folders |= {config["file"] for config in compose["configs"].values() if "file" in config}
    assert folders == {"./deploy/haproxy.cfg", "./deploy/prometheus", "./deploy/valkey.conf", "./worker"}
    assert {source for source in folders if not (ROOT / source).exists()} == set()
    assert {source for source in mounted if not source.startswith(".")} == set(compose["volumes"])
    for service in services.values():
        assert set(service["networks"]) <= set(compose["networks"])
        assert set(service.get("depends_on", ())) <= set(services)
