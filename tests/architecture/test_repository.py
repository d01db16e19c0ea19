from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.architecture.repository import ROOT, name_of, python_files, text_of, tracked_files

#: A path of one machine: somebody's home, a build farm's folder. /tmp, /dev, /proc and the like are on every system.
MACHINE_PATH = re.compile(r"(?<![\w./-])/(?:home/\w+|Users/\w+|root/|work/|mnt/|build/|opt/\w+)")
#: Hosts of package registries: which one is used is the business of pip's own configuration.
REGISTRY_HOST = re.compile(r"pypi\.org|pythonhosted\.org|registry\.npmjs\.org|registry\.yarnpkg\.com|deb\.debian\.org")
#: Outside of the repository.
OUTSIDE = re.compile(r"\.\./shared|/shared/(?:design|research|prototypes)")

#: Every folder with code of ours.
EVERYTHING = ("service", "worker", "training", "benchmarks", "tests")

TEXTS = [path for path in tracked_files() if text_of(path) is not None and path != Path(__file__)]


@pytest.mark.parametrize("pattern", [MACHINE_PATH, REGISTRY_HOST, OUTSIDE], ids=["machine", "registry", "outside"])
def test_nothing_names_a_machine_or_a_registry(pattern: re.Pattern[str]) -> None:
    found = {
        f"{name_of(path)}:{number}": line.strip()[:120]
        for path in TEXTS
        if path.suffix in {".py", ".md", ".toml", ".yaml", ".lua", ".txt", ""} and path.name != "tokenizer.json"
        for number, line in enumerate((text_of(path) or "").splitlines(), 1)
        if pattern.search(line)
    }
    assert found == {}


def test_environment_is_read_in_the_settings_only() -> None:
    readers = {"environ", "environb", "getenv", "getenvb", "putenv"}
    found: list[str] = []
    for path in python_files("service", "worker"):
        if (ROOT / "service" / "settings") in path.parents:
            continue
        nodes = list(ast.walk(ast.parse(path.read_text("utf-8"))))
        # A sandbox that empties its environment reads nothing of it.
        emptied = {node.value for node in nodes if isinstance(node, ast.Attribute) and node.attr == "clear"}
        reads = (node for node in nodes if isinstance(node, ast.Attribute) and node.attr in readers)
        found += [f"{name_of(path)}:{node.lineno}" for node in reads if node not in emptied]
    assert found == []


def test_nothing_is_left_for_later() -> None:
    markers = re.compile(r"\b(?:TODO|FIXME|XXX|HACK|for now|placeholder)\b")
    found = [
        f"{name_of(path)}:{number}"
        for path in python_files(*EVERYTHING)
        if path != Path(__file__)
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if markers.search(line)
    ]
    assert found == []


def test_suppressed_checks_name_their_rule() -> None:
    bare = re.compile(r"#\s*noqa(?!:)|#\s*type:\s*ignore(?!\[)|#\s*pyright:\s*ignore(?!\[)")
    found = [
        f"{name_of(path)}:{number}"
        for path in python_files(*EVERYTHING)
        if path != Path(__file__)
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if bare.search(line)
    ]
    assert found == []


def test_tests_use_the_real_thing() -> None:
    found = [
        f"{name_of(path)}:{node.lineno}"
        for path in python_files("tests")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if (isinstance(node, ast.ImportFrom) and (node.module or "").startswith("unittest"))
        or (
            isinstance(node, ast.Name | ast.Attribute) and getattr(node, "id", getattr(node, "attr", "")) == "MagicMock"
        )
    ]
    assert found == []
