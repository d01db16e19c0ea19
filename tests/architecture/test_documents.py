from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer.main
from pydantic_settings import BaseSettings

from service.api.problems import STATUSES
from service.cli.commands import app
from service.contract.catalog import CatalogEntry, EngineOptions, Limits, SamplingDefaults
from service.contract.errors import RETRYABLE_FAILURES, FailureCode
from service.settings.cli import ClientSettings, UpSettings
from service.settings.egress import EgressSettings, FetchSettings
from service.settings.gateway import AdmissionSettings, AuthSettings, HttpSettings
from service.settings.groups import LogSettings, RedisSettings, StorageSettings, WebhookSettings
from service.settings.telemetry import MetricsSettings, TracingSettings
from service.settings.worker import AgentSettings
from tests.architecture.repository import ROOT, name_of, text_of, tracked_files

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
SHELL_BLOCK = re.compile(r"```sh\n(.*?)```", re.DOTALL)
VARIABLE = re.compile(r"^(?:export\s+)?([A-Z][A-Z0-9_]*)=")

#: Written by the application or made through it; each has a test of its own.
GENERATED = {"openapi.yaml", "docs/images/first-picture.png"}


def documents() -> list[Path]:
    return [path for path in tracked_files() if path.suffix == ".md"]


def shell_commands(document: str) -> list[list[str]]:
    """Every command of the document's shell blocks, as words, without variables set in front."""
    text = (ROOT / document).read_text("utf-8")
    lines = "\n".join(SHELL_BLOCK.findall(text)).replace("\\\n", " ").splitlines()
    commands = [shlex.split(line, comments=True) for line in lines]
    without = [[word for word in words if not VARIABLE.match(word) and word != "export"] for words in commands]
    return [words for words in without if words]


def named_command(words: list[str]) -> tuple[Any, list[str]]:
    """The command that `darkroom` words name, and the words after it."""
    command: Any = typer.main.get_command(app)
    rest = words[1:]
    while rest and rest[0] in getattr(command, "commands", {}):
        command, rest = command.commands[rest[0]], rest[1:]
    return command, rest


@pytest.mark.parametrize("path", documents(), ids=name_of)
def test_links_of_documents_lead_to_files(path: Path) -> None:
    targets = {target.split("#")[0] for target in LINK.findall(path.read_text("utf-8"))}
    local = {target for target in targets if target and "://" not in target and not target.startswith("mailto:")}
    missing = {target for target in local if not (path.parent / target).exists()}
    assert {name_of((path.parent / target).resolve()) for target in missing} - GENERATED == set()


def test_documents_that_code_names_exist() -> None:
    named = {
        (name_of(path), mention)
        for path in tracked_files()
        if path.suffix in {".py", ".yaml", ".toml", ".lua"}
        for mention in re.findall(r"\bdocs/[\w/-]+\.md\b", text_of(path) or "")
    }
    assert named
    assert {(where, mention) for where, mention in named if not (ROOT / mention).exists()} == set()


def test_every_error_code_is_documented_with_its_status_or_its_hope() -> None:
    text = (ROOT / "docs/errors.md").read_text("utf-8")
    problems, failures = text.split("## Failures")
    for kind, status in STATUSES.items():
        row = re.search(rf"^\| `{kind.code}` \| ([^|]+) \|", problems, re.MULTILINE)
        assert (row and str(int(status)) in row[1]) or kind.code == "tenant_error", kind.code
    for code in FailureCode:
        row = re.search(rf"^\| `{code}` \| (yes|no) \|", failures, re.MULTILINE)
        assert row, code
        assert (row[1] == "yes") == (code in RETRYABLE_FAILURES), code
    rows = set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) - {"code"}
    assert rows <= {kind.code for kind in STATUSES} | set(FailureCode)


def test_every_field_of_the_catalogue_is_documented() -> None:
    text = (ROOT / "docs/adding-a-model.md").read_text("utf-8")
    parts = (CatalogEntry, SamplingDefaults, Limits, EngineOptions)
    fields = {field for part in parts for field in part.model_fields}
    assert {field for field in fields if f"`{field}`" not in text} == set()


@pytest.mark.parametrize("document", ["README.md", "README.zh-CN.md"])
def test_commands_of_the_readme_exist(document: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    commands = shell_commands(document)
    assert len(commands) >= 8
    for words in commands:
        match words[0]:
            case "make":
                assert {word for word in words[1:] if "=" not in word} & targets, words
            case "darkroom":
                command, rest = named_command(words)
                assert not getattr(command, "commands", None), f"{words} names no command"
                options = {name for parameter in command.params for name in parameter.opts}
                assert {word for word in rest if word.startswith("-")} <= options, words
            case other:
                assert other in {"git", "curl"}, words


def test_translation_has_the_same_commands_and_links() -> None:
    english, chinese = (ROOT / name for name in ("README.md", "README.zh-CN.md"))
    assert shell_commands(english.name) == shell_commands(chinese.name)
    ours = {"README.md", "README.zh-CN.md"}
    links = [set(LINK.findall(path.read_text("utf-8"))) - ours for path in (english, chinese)]
    assert links[0] == links[1]


def test_newest_version_of_the_changelog_is_the_projects() -> None:
    versions = re.findall(r"^## \[(\d[^\]]*)\]", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert versions[0] == tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]


def test_every_command_explains_itself() -> None:
    def silent(command: Any, path: str) -> list[str]:
        found = [] if command.help else [path]
        for name, inner in getattr(command, "commands", {}).items():
            found += silent(inner, f"{path} {name}")
        return found

    root = typer.main.get_command(app)
    assert silent(root, "darkroom") == []


def test_variables_of_the_documents_are_read_by_a_settings_class() -> None:
    settings = "\n".join(text_of(path) or "" for path in (ROOT / "service" / "settings").glob("*.py"))
    prefixes = set(re.findall(r'env_prefix="([A-Z_0-9]+)"', settings))
    for path in documents():
        for variable in set(re.findall(r"\bDARKROOM_[A-Z0-9_]+\b", path.read_text("utf-8"))):
            fields = [variable.removeprefix(prefix).lower() for prefix in prefixes if variable.startswith(prefix)]
            read = variable in settings or any(re.search(rf"^    {field}:", settings, re.MULTILINE) for field in fields)
            assert read, f"{name_of(path)} names {variable}"


@pytest.mark.parametrize(
    "group",
    [
        AdmissionSettings, AgentSettings, AuthSettings, ClientSettings, EgressSettings, FetchSettings, HttpSettings,
        LogSettings, MetricsSettings, RedisSettings, StorageSettings, TracingSettings, UpSettings, WebhookSettings,
    ],
)  # fmt: skip
def test_every_setting_is_documented(group: type[BaseSettings]) -> None:
    text = (ROOT / "docs/operations.md").read_text("utf-8")
    prefix = group.model_config.get("env_prefix", "")
    #: Told by their short names.
    short = {"DARKROOM_PORT": "PORT", "DARKROOM_AUTH": "AUTH"}
    #: For fault campaigns, as its own comment says.
    internal = {"DARKROOM_ENGINE_MODULE"}
    names = {f"{prefix}{name}".upper() for name in group.model_fields} - internal
    assert {name for name in names if f"`{short.get(name, name)}`" not in text} == set()
