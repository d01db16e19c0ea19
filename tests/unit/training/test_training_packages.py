"""Packages: only the pinned archive is taken, and archives are read without being unpacked."""

from __future__ import annotations

import base64
import hashlib
import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from training import packages
from training.packages import Package, PackageError


def pinned(content: bytes, file: str = "thing-1.0.tgz") -> Package:
    integrity = "sha512-" + base64.b64encode(hashlib.sha512(content).digest()).decode()
    return Package("thing", "1.0", integrity, file)


def test_archive_that_is_there_is_taken_without_fetching(tmp_path: Path) -> None:
    package = pinned(b"content")
    (tmp_path / package.file).write_bytes(b"content")
    assert packages.fetch(package, tmp_path) == tmp_path / package.file


def test_archive_of_another_digest_is_refused_by_name(tmp_path: Path) -> None:
    package = pinned(b"content")
    (tmp_path / package.file).write_bytes(b"contend")
    with pytest.raises(PackageError, match=r"thing-1\.0\.tgz is not thing 1\.0"):
        packages.fetch(package, tmp_path)


def test_every_package_is_pinned_to_a_whole_digest() -> None:
    for package in packages.PACKAGES:
        algorithm, _, digest = package.integrity.partition("-")
        assert algorithm == "sha512"
        assert len(base64.b64decode(digest, validate=True)) == 64
        assert package.version in package.file
    assert len({package.file for package in packages.PACKAGES}) == len(packages.PACKAGES)


def test_regular_files_under_a_prefix_are_read_from_a_tarball(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tgz", "w:gz") as tarball:
        for name, content in {"package/a/1.svg": b"one", "package/b/2.svg": b"two"}.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tarball.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("package/a/link.svg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        tarball.addfile(link)
        folder = tarfile.TarInfo("package/a/folder")
        folder.type = tarfile.DIRTYPE
        tarball.addfile(folder)
    assert packages.read_members(tmp_path / "a.tgz", "package/a/") == {"package/a/1.svg": b"one"}


def test_files_under_a_prefix_are_read_from_a_wheel(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as wheel:
        wheel.writestr("thing/words.txt", "one two")
        wheel.writestr("other/words.txt", "three")
    assert packages.read_members(tmp_path / "a.whl", "thing/") == {"thing/words.txt": b"one two"}
