from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from service.cli.failure import CommandFailed
from service.cli.generate import Wish, request_body


def darkroom(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a user would, with these variables on top of a clean environment."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("DARKROOM_", "PORT", "AUTH"))}
    return subprocess.run(
        [sys.executable, "-m", "service.cli.main", *words],
        env={**clean, **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_version_is_the_distributions() -> None:
    assert darkroom("--version").stdout == f"darkroom {version('darkroom')}\n"


def test_command_without_words_shows_its_commands() -> None:
    shown = darkroom()
    assert {"up", "gateway", "worker", "sender", "generate", "tenants", "keys", "models", "doctor"} <= set(
        shown.stdout.split()
    )


@pytest.mark.parametrize(
    ("words", "variables", "exit_code", "sentence"),
    [
        (["generate", "x", "--url", "http://127.0.0.1:1"], {}, 3, "No gateway answers at http://127.0.0.1:1"),
        (["generate", "x"], {"DARKROOM_URL": "http://127.0.0.1:1"}, 3, "No gateway answers at http://127.0.0.1:1"),
        (["generate", "x", "--url", "ftp://127.0.0.1"], {}, 2, "is no address of a gateway"),
        (["generate", "x", "--url", "http://"], {}, 2, "is no address of a gateway"),
        (["generate", "x", "--url", "http://[::1"], {}, 2, "is no address of a gateway"),
        (["generate", "x", "--url", "http://127.0.0.1:99999"], {}, 2, "is no address of a gateway"),
        (["generate", "x", "--key", "dk_é"], {}, 2, "This is no API key"),
        (["generate", "x", "--key", "dk_secret\nX: y"], {}, 2, "This is no API key"),
        (["generate", "x", "--guidance", "nan", "--url", "http://127.0.0.1:1"], {}, 2, "a number must be finite"),
        (["generate", "\udcff", "--url", "http://127.0.0.1:1"], {}, 2, "a text must be UTF-8"),
        (["generate", "x", "-o", "/proc/nowhere/x.png"], {}, 2, "cannot be written"),
        (["tenants", "add", "a", "--name", "\udcff"], {}, 2, "--name: must be one line of printable text"),
        (["keys", "create", "a", "--label", "\x1b[31m"], {}, 2, "--label: must be one line of printable text"),
        (["tenants", "list"], {"DARKROOM_REDIS_URL": "http://:pass@a"}, 1, "DARKROOM_REDIS_URL: must look like"),
        (["gateway"], {"DARKROOM_S3_ENDPOINT": "s3"}, 1, "DARKROOM_S3_ENDPOINT: must look like"),
        (["worker"], {"DARKROOM_REDIS_URL": "redis://a:b"}, 1, "DARKROOM_REDIS_URL: must look like"),
        (["sender"], {"DARKROOM_REDIS_URL": "redis://a:b"}, 1, "DARKROOM_REDIS_URL: must look like"),
        (["generate", "x", "-o", "out.gif"], {}, 2, "must end in .png"),
        (["generate", "x", "--image", "/nowhere/at/all.png"], {}, 2, "cannot be read"),
        (["generate", "x", "--mask", "/nowhere.png"], {}, 2, "--mask needs --image"),
        (["models", "list", "--url", "http://127.0.0.1:1"], {}, 3, "No gateway answers"),
        (["tenants", "list"], {"DARKROOM_REDIS_URL": "redis://127.0.0.1:1"}, 1, "Redis does not answer"),
        (["up"], {"PORT": "http"}, 1, "PORT"),
        (["up", "--home", "/proc/darkroom"], {}, 1, "cannot be used as the home folder"),
    ],
)
def test_failure_is_one_line_and_an_exit_code(
    words: list[str], variables: dict[str, str], exit_code: int, sentence: str
) -> None:
    done = darkroom(*words, **variables)
    assert (done.returncode, done.stdout) == (exit_code, "")
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1
    assert "secret" not in done.stderr


def test_missing_extra_is_one_line() -> None:
    """-S hides everything that is installed."""
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-S", "-c", "from service.cli.main import main; main()"],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert (
        done.stderr
        == "typer is not installed; this command needs more: pip install 'darkroom[cli]' or another extra.\n"
    )


def test_request_has_only_what_was_asked_for(tmp_path: Path) -> None:
    assert request_body(Wish("a cat"), tmp_path / "a.png", None, None) == {
        "prompt": "a cat",
        "output": {"format": "png"},
    }


def test_image_and_mask_choose_the_task(tmp_path: Path) -> None:
    picture = tmp_path / "in.png"
    picture.write_bytes(b"\x89PNG")
    wish = Wish("a cat", strength=0.5, seed=7)
    body = request_body(wish, tmp_path / "a.jpg", picture, None)
    assert (body["task"], body["strength"], body["seed"]) == ("image-to-image", 0.5, 7)
    assert (body["output"], body["image"]) == ({"format": "jpeg"}, {"base64": "iVBORw=="})
    assert request_body(wish, tmp_path / "a.webp", picture, picture)["task"] == "inpaint"


def test_mask_without_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CommandFailed, match="--image"):
        request_body(Wish("a cat"), tmp_path / "a.png", None, tmp_path / "mask.png")


def test_tenant_gets_a_key_that_is_shown_once_and_can_be_revoked(valkey_url: str, redis_client: object) -> None:
    redis = {"DARKROOM_REDIS_URL": valkey_url}
    assert darkroom("tenants", "add", "shop", "--max-queued", "5", **redis).returncode == 0
    again = darkroom("tenants", "add", "shop", **redis)
    assert (again.returncode, again.stderr) == (1, "The tenant shop exists already.\n")

    named = ("--max-queued", "none", "--weight", "2", "--max-requests-per-minute", "60", "--max-gpu-s-per-day", "900")
    changed = darkroom("tenants", "set", "shop", *named, **redis)
    assert changed.returncode == 0
    row = next(line for line in darkroom("tenants", "list", **redis).stdout.splitlines() if line.startswith("shop"))
    assert row.split()[:7] == ["shop", "2", "60", "900", "none", "none", "high"]
    wrong = darkroom("tenants", "set", "shop", "--weight", "0", **redis)
    assert (wrong.returncode, "--weight" in wrong.stderr) == (2, True)

    made = darkroom("keys", "create", "shop", "--label", "web", **redis)
    key = made.stdout.strip()
    assert key.startswith("dk_")
    key_id, secret = key.split("_", 2)[1:]
    listed = darkroom("keys", "list", "shop", **redis).stdout
    assert key_id in listed
    assert "live" in listed
    assert secret not in listed

    assert darkroom("keys", "revoke", key_id, **redis).returncode == 0
    assert "revoked" in darkroom("keys", "list", "shop", **redis).stdout
    assert darkroom("keys", "create", "nobody", **redis).returncode == 1

    removed = darkroom("tenants", "remove", "shop", **redis)
    assert removed.stdout == "Tenant shop removed, 1 keys revoked; ended generations go by their time\n"
    assert darkroom("tenants", "remove", "shop", **redis).returncode == 1
    assert "shop" not in darkroom("tenants", "list", **redis).stdout


def test_a_folder_is_no_file_to_write_a_picture_to(tmp_path: Path) -> None:
    (tmp_path / "x.png").mkdir()
    done = darkroom("generate", "x", "-o", str(tmp_path / "x.png"), "--url", "http://127.0.0.1:1")
    assert (done.returncode, "cannot be written" in done.stderr) == (2, True)


def test_doctor_names_a_malformed_address() -> None:
    done = darkroom("doctor", DARKROOM_S3_ENDPOINT="s3.internal", COLUMNS="300")
    assert "DARKROOM_S3_ENDPOINT: must look like" in done.stdout
    assert "Traceback" not in done.stderr
