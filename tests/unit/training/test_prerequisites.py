"""A stage that cannot begin says in one line what is missing and which command comes first."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.models import BOXED_MODEL
from training import packages
from training.__main__ import main
from training.prerequisites import EXTRAS, WORK, as_command


def said(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """Run a command that must fail; return its last word."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    assert isinstance(ended.value.code, str), "a text is told on standard error, and the exit code is 1"
    assert "\n" not in ended.value.code
    assert capsys.readouterr().out == ""
    return ended.value.code


def make(work: Path, *files: str) -> None:
    for file in files:
        (work / file).parent.mkdir(parents=True, exist_ok=True)
        (work / file).touch()


DRAWINGS = "drawings.npz"
PIPELINE = "denoiser/pipeline/model_index.json"
CLASSIFIER = "classifier/weights/config.json"


@pytest.mark.parametrize(
    ("command", "there", "missing", "first"),
    [
        ("autoencoder", [], DRAWINGS, "data"),
        ("text-encoder", [], DRAWINGS, "data"),
        ("classifier", [], DRAWINGS, "data"),
        ("denoiser", [DRAWINGS], "autoencoder/weights/config.json", "autoencoder"),
        (
            "denoiser",
            [DRAWINGS, "autoencoder/weights/config.json"],
            "text_encoder/weights/config.json",
            "text-encoder",
        ),
        *((stage, [PIPELINE], DRAWINGS, "data") for stage in ("lora", "controlnet", "textual-inversion")),
        *((stage, [DRAWINGS], PIPELINE, "denoiser") for stage in ("lora", "controlnet", "textual-inversion")),
        ("evaluate", [DRAWINGS, CLASSIFIER], PIPELINE, "denoiser"),
        ("evaluate", [DRAWINGS, PIPELINE], CLASSIFIER, "classifier"),
        ("evaluate-extras", [DRAWINGS], PIPELINE, "denoiser"),
        ("release", [], PIPELINE, "denoiser"),
    ],
)
def test_a_missing_file_is_told_with_the_stage_that_makes_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, there: list[str], missing: str, first: str
) -> None:
    make(tmp_path, *there)
    text = said(capsys, command, "--work", tmp_path)
    assert text == f"{tmp_path / missing} is missing. Run first: python -m training {first} --work {tmp_path}"


def test_a_command_is_told_as_it_is_typed() -> None:
    assert as_command("textual_inversion", WORK) == "python -m training textual-inversion"


def test_where_no_extra_was_trained_there_is_nothing_to_measure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path, DRAWINGS)
    text = said(capsys, "evaluate-extras", "--work", tmp_path, "--base", BOXED_MODEL)
    assert "No extra was trained" in text
    assert all(as_command(stage, tmp_path) in text for stage in EXTRAS)


@pytest.mark.parametrize(
    ("arguments", "missing"),
    [
        (["autoencoder", "--start"], "config.json"),
        (["denoiser", "--start"], "text_encoder/config.json"),
        (["lora", "--base"], "model_index.json"),
        (["evaluate"], "model_index.json"),
        (["evaluate-extras", "--base"], "model_index.json"),
        (["release", "--base"], "model_index.json"),
    ],
)
def test_a_folder_of_another_kind_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], missing: str
) -> None:
    make(tmp_path, DRAWINGS, CLASSIFIER, "autoencoder/weights/config.json")
    folder = tmp_path / "somewhere"
    folder.mkdir()
    text = said(capsys, *arguments, folder, "--work", tmp_path)
    assert text.startswith(f"{folder} is not what python -m training {arguments[0]}")
    assert text.endswith(f"there is no {missing} in it.")


def test_a_given_folder_takes_the_place_of_one_file_and_of_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert f"{tmp_path / DRAWINGS} is missing" in said(capsys, "lora", "--base", BOXED_MODEL, "--work", tmp_path)
    make(tmp_path, DRAWINGS)
    text = said(capsys, "denoiser", "--start", BOXED_MODEL, "--work", tmp_path)
    assert text.startswith(f"{tmp_path / 'autoencoder/weights/config.json'} is missing")


@pytest.mark.parametrize(("stage", "module"), [("lora", "peft"), ("controlnet", "cv2"), ("data", "resvg_py")])
def test_a_module_that_is_not_installed_is_named_with_the_extra_that_has_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, stage: str, module: str
) -> None:
    make(tmp_path, DRAWINGS, PIPELINE)
    for name in ("training.lora", "training.controlnet", "training.edges"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, module, None)
    text = said(capsys, stage, "--work", tmp_path)
    assert text.startswith(f"The module {module} is not installed")
    assert ".[worker,training]" in text
    assert not (tmp_path / "packages").exists(), "it is told before anything is fetched"


def test_a_package_that_is_not_the_pinned_one_ends_the_stage_with_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / "packages", *(package.file for package in packages.PACKAGES))
    assert "its digest is" in said(capsys, "data", "--work", tmp_path)


def test_a_folder_that_cannot_be_written_ends_the_stage_with_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path, "packages")
    assert str(tmp_path / "packages") in said(capsys, "data", "--work", tmp_path)


def test_the_process_ends_with_1_and_a_single_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "training", "classifier", "--work", str(tmp_path)],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(__file__).parents[3],
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == f"{tmp_path / DRAWINGS} is missing. Run first: {as_command('data', tmp_path)}\n"
