"""Emoji drawings, rendered to 64 px: `drawings.npz`, the set that every training stage reads.

Each emoji is cropped to what is drawn and centred at one scale, so that a subject fills the picture alike in every
style. Only emoji drawn in all of `STYLES` are kept; flags, people and signs are left out.
"""

import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from training import packages
from training.subjects import SUBJECTS

#: Edge of a picture, px.
PX = 64
#: Empty border around a drawing, px.
MARGIN = 3
#: Style -> the words that ask for it.
STYLES = {"3d": "3d render", "flat": "flat vector", "noto": "noto style"}
#: The style that the base never sees: the LoRA's.
INK_WORDS = "black ink"
#: emojibase groups: smileys, animals and plants, food, places, activities, objects.
_GROUPS = (0, 3, 4, 5, 6, 7)


@dataclass(frozen=True, slots=True)
class Drawings:
    """The rendered set.

    labels: n names. rgba: uint8 (n, 3, 64, 64, 4), styles in the order of `STYLES`, straight alpha.
    ink: uint8 (n, 64, 64, 4), the held-out style; all zero where an emoji has none.
    """

    labels: tuple[str, ...]
    rgba: NDArray[np.uint8]
    ink: NDArray[np.uint8]

    def of_subjects(self) -> "Drawings":
        """Return the drawings of `SUBJECTS`, in their order."""
        return self.take([self.labels.index(name) for name in SUBJECTS])

    def others(self) -> "Drawings":
        """Return the drawings that are of no subject: the denoiser never sees them."""
        return self.take([i for i, name in enumerate(self.labels) if name not in SUBJECTS])

    def take(self, indices: list[int]) -> "Drawings":
        """Return a part of the set."""
        return Drawings(tuple(self.labels[i] for i in indices), self.rgba[indices], self.ink[indices])


def load(work: Path) -> Drawings:
    """Return the set that `render` wrote into `work`."""
    with np.load(work / "drawings.npz", allow_pickle=False) as file:
        return Drawings(tuple(str(name) for name in file["labels"]), file["rgba"], file["ink"])


def render(work: Path) -> Drawings:
    """Fetch the packages, render every emoji and write `drawings.npz` into `work`.

    Raises:
        PackageError: see `packages.fetch`.
    """
    archives = {p: packages.fetch(p, work / "packages") for p in tqdm(packages.PACKAGES, desc="packages", unit="file")}
    flat, noto, ink = (
        _IconSet(archives[p]) for p in (packages.FLUENT_FLAT, packages.NOTO, packages.FLUENT_HIGH_CONTRAST)
    )
    renders = packages.read_members(archives[packages.FLUENT_3D], "package/assets/")
    labels, rgba, inks = [], [], []
    for label, hexcode in tqdm(list(_emoji(archives[packages.NAMES])), desc="drawings", unit="emoji"):
        slug = _slug(label)
        codes = (hexcode, hexcode.replace("-fe0f", ""), hexcode + "-fe0f")
        webp = next((renders[f"package/assets/{c}.webp"] for c in codes if f"package/assets/{c}.webp" in renders), None)
        if webp is None or slug not in flat or slug not in noto:
            continue
        pictures = Image.open(io.BytesIO(webp)), flat.draw(slug), noto.draw(slug)
        labels.append(label)
        rgba.append(np.stack([_fit(p) for p in pictures]))
        inks.append(_fit(ink.draw(slug)) if slug in ink else np.zeros((PX, PX, 4), np.uint8))
    missing = [name for name in SUBJECTS if name not in labels]
    if missing:
        raise packages.PackageError(f"no drawing in all styles for: {', '.join(missing)}")
    drawings = Drawings(tuple(labels), np.stack(rgba), np.stack(inks))
    np.savez_compressed(work / "drawings.npz", labels=np.array(labels), rgba=drawings.rgba, ink=drawings.ink)
    return drawings


class _IconSet:
    """One set in Iconify's JSON form: bodies of SVG pictures by name, and aliases."""

    def __init__(self, archive: Path) -> None:
        self._set = json.loads(packages.read_members(archive, "package/icons.json")["package/icons.json"])

    def __contains__(self, name: str) -> bool:
        return name in self._set["icons"] or name in self._set.get("aliases", {})

    def draw(self, name: str) -> Image.Image:
        """Return one icon as a 128 px RGBA picture."""
        import resvg_py  # only this stage needs it  # noqa: PLC0415

        name = self._set.get("aliases", {}).get(name, {}).get("parent", name)
        icon = self._set["icons"][name]
        width, height = (icon.get(side, self._set.get(side, 16)) for side in ("width", "height"))
        svg = (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="0 0 {width} {height}" width="128" height="128">{icon["body"]}</svg>'
        )
        return Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg))))


def _emoji(names: Path) -> Iterator[tuple[str, str]]:
    data = json.loads(packages.read_members(names, "package/en/data.json")["package/en/data.json"])
    for entry in data:
        if entry.get("group") in _GROUPS or entry["label"] in SUBJECTS:
            yield entry["label"], entry["hexcode"].lower()


def _slug(label: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", re.sub("[’']", "", label.lower())).strip("-")


def _fit(picture: Image.Image) -> NDArray[np.uint8]:
    picture = picture.convert("RGBA")
    # Alpha up to 8 is a soft shadow's rim: it would shrink the drawing and is never seen.
    drawn = picture.getchannel("A").point([0] * 9 + [255] * 247).getbbox()
    picture = picture.crop(drawn)
    scale = (PX - 2 * MARGIN) / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    fitted = Image.new("RGBA", (PX, PX))
    fitted.paste(picture.resize((width, height), Image.Resampling.LANCZOS), ((PX - width) // 2, (PX - height) // 2))
    return np.asarray(fitted)
