from __future__ import annotations

import ast
from collections import defaultdict

from tests.architecture.repository import ROOT, name_of, python_files, tracked_files

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_TREE_BYTES = 40 << 20

PACKAGES = ("service", "worker", "training")


def test_no_python_file_is_longer_than_400_lines() -> None:
    lengths = {name_of(path): len(path.read_text("utf-8").splitlines()) for path in python_files(*PACKAGES, "tests")}
    assert lengths
    assert {name: lines for name, lines in lengths.items() if lines > MAX_FILE_LINES} == {}


def test_no_function_is_longer_than_60_lines() -> None:
    too_long = {
        f"{name_of(path)}:{node.lineno} {node.name}": lines
        for path in python_files(*PACKAGES)
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (lines := (node.end_lineno or node.lineno) - node.lineno + 1) > MAX_FUNCTION_LINES
    }
    assert too_long == {}


def test_no_two_classes_share_a_name() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for path in python_files(*PACKAGES):
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(name_of(path))
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


def test_modules_have_names_that_say_what_is_in_them() -> None:
    nondescript = {"utils", "helpers", "common", "misc", "base", "util", "helper"}
    assert [name_of(path) for path in python_files(*PACKAGES) if path.stem in nondescript] == []


def test_package_markers_are_empty_so_that_the_worker_can_import_through_them() -> None:
    markers = [path for path in python_files(*PACKAGES) if path.name == "__init__.py"]
    assert ROOT / "service" / "__init__.py" in markers
    assert [name_of(path) for path in markers if path.read_text("utf-8").strip()] == []


def test_tracked_tree_is_smaller_than_40_mib() -> None:
    assert sum(path.stat().st_size for path in tracked_files()) < MAX_TREE_BYTES
