"""The tracked tree, read once for the architecture tests."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@cache
def tracked_files() -> tuple[Path, ...]:
    """Every file of the checkout that git tracks or would track; sorted."""
    listing = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        check=True,
    )
    paths = (ROOT / name.decode() for name in listing.stdout.split(b"\0") if name)
    return tuple(sorted(path for path in paths if path.is_file()))


def python_files(*folders: str) -> list[Path]:
    """Tracked Python files of these top-level folders."""
    return [path for path in tracked_files() if path.suffix == ".py" and path.relative_to(ROOT).parts[0] in folders]


def text_of(path: Path) -> str | None:
    """Its text, or None for a binary file."""
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError:
        return None


def name_of(path: Path) -> str:
    """As people write it: relative to the root."""
    return path.relative_to(ROOT).as_posix()
