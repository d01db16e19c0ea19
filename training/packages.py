"""The packages that the training pictures, their captions and the tokenizer's vocabulary come from.

All are under MIT, Apache-2.0 or Unicode-3.0 (NOTICE beside the released weights). They are fetched by the machine's own
`npm` and `pip`, as these are configured, pinned to a version and a digest, and read as archives: nothing is installed,
unpacked or run.
"""

import base64
import hashlib
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Package:
    """One archive of a registry: an npm tarball, or a wheel."""

    name: str
    version: str
    #: Subresource-integrity form, `sha512-<base64>`, as npm prints it.
    integrity: str
    #: The archive's file name, as the registry's own tool writes it.
    file: str


NOTO = Package(
    "@iconify-json/noto",
    "1.2.9",
    "sha512-DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI3rcKF0mqHYeZVAuaw==",
    "iconify-json-noto-1.2.9.tgz",
)
FLUENT_FLAT = Package(
    "@iconify-json/fluent-emoji-flat",
    "1.2.6",
    "sha512-RY47RgPb47fYUiyrA64sIOL0+UU02s29sXpNBbIQRBUlPlfNFTKUmZDERGuxDs/7yNGWqQYvuaSYM1M4fRXlUw==",
    "iconify-json-fluent-emoji-flat-1.2.6.tgz",
)
FLUENT_HIGH_CONTRAST = Package(
    "@iconify-json/fluent-emoji-high-contrast",
    "1.2.6",
    "sha512-esqhZPpkrF7sNX3NsLoh8KW64okEr/bzko7WNnFP+qTJGAqDPDYjp0925yxuivXy3HtVQB8xhIKu3+Nq1byX5w==",
    "iconify-json-fluent-emoji-high-contrast-1.2.6.tgz",
)
FLUENT_3D = Package(
    "@lobehub/fluent-emoji-3d",
    "1.1.0",
    "sha512-Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF0me7ogeRQjKoehDHXuVJ2Qaecgl5wRBv60lUAG3h7g==",
    "lobehub-fluent-emoji-3d-1.1.0.tgz",
)
NAMES = Package(
    "emojibase-data",
    "17.0.0",
    "sha512-Yvgb5AWoHViHV/gq1qr5ZAarcBip+B27/ZLRsUJkbgAEaLlZ/fof9g882LTpmEpyhBNEC0m2SEmItljHsTygjA==",
    "emojibase-data-17.0.0.tgz",
)
CLIP_VOCABULARY = Package(
    "open_clip_torch",
    "3.3.0",
    "sha512-wCW/mi1bsJNCTrLHiz63H5+HaS+jVJKH+8VUl2wR/biHQqxrR2+398oIVHx47Eiy4si/3HOjQ8VN8PPNMhv95A==",
    "open_clip_torch-3.3.0-py3-none-any.whl",
)
PACKAGES = (NOTO, FLUENT_FLAT, FLUENT_HIGH_CONTRAST, FLUENT_3D, NAMES, CLIP_VOCABULARY)


class PackageError(Exception):
    """A package could not be fetched, or is not the one that was pinned."""


def fetch(package: Package, folder: Path) -> Path:
    """Return the archive of `package` in `folder`, fetched if it is not there; its digest is checked each time.

    Raises:
        PackageError: the registry's tool failed, or the archive's digest is not the pinned one.
    """
    archive = folder / package.file
    if not archive.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _download(package, folder)
    digest = "sha512-" + base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    if digest != package.integrity:
        raise PackageError(
            f"{archive} is not {package.name} {package.version}: its digest is {digest}, pinned is "
            f"{package.integrity}. Delete the file and run the command again."
        )
    return archive


def _download(package: Package, folder: Path) -> None:
    if package.file.endswith(".whl"):
        requirement = f"{package.name}=={package.version}"
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), requirement]
    else:
        command = ["npm", "pack", "--silent", "--pack-destination", str(folder), f"{package.name}@{package.version}"]
    try:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # noqa: S603 - pinned names, no shell
    except FileNotFoundError as error:
        raise PackageError("npm was not found; the drawings come as npm packages. Install Node.js first.") from error
    except subprocess.CalledProcessError as error:
        raise PackageError(f"{command[0]} could not fetch {package.name} {package.version} (see above).") from error


def read_members(archive: Path, prefix: str) -> dict[str, bytes]:
    """Return the regular files of a tarball or wheel whose path starts with `prefix`, by path."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            return {name: wheel.read(name) for name in wheel.namelist() if name.startswith(prefix)}
    with tarfile.open(archive) as tarball:
        members = [m for m in tarball.getmembers() if m.isfile() and m.name.startswith(prefix)]
        return {m.name: file.read() for m in members if (file := tarball.extractfile(m)) is not None}
