"""How measured figures and drawn pictures are shown: tables, and a sheet with its prompts."""

import math
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

_SCALE = 2
_GAP_PX = 6
_FONT_PX = 12
_LINE_PX = 14
#: Characters of a line under a picture; the font is about 6 px wide.
_LINE_CHARACTERS = 22


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured value. A part of `n` is in 0..1 and its unit is %."""

    group: str
    name: str
    value: float
    unit: str = "%"
    #: Prompts, pictures or repetitions that it was measured on.
    n: int | None = None
    aim: float | None = None
    #: What a model would reach that does not listen to its prompt.
    chance: float | None = None
    less_is_better: bool = False
    #: Whether it counts yes and no, so that an interval can be told from `n` alone; a mean of other numbers does not.
    counted: bool = False

    @property
    def met(self) -> bool | None:
        """Whether the aim is reached; None where there is none."""
        if self.aim is None:
            return None
        return self.value <= self.aim if self.less_is_better else self.value >= self.aim

    def shown(self, value: float | None) -> str:
        """Return a value of this figure's kind as text, empty for None."""
        if value is None:
            return ""
        return f"{100 * value:.1f} %" if self.unit == "%" else f"{value:.2f} {self.unit}".rstrip()


def hits(
    group: str, name: str, each: Iterable[bool], *, aim: float | None = None, chance: float | None = None
) -> Figure:
    """Return the figure that says which part of `each` is true."""
    counted = list(each)
    return Figure(
        group, name, float(sum(counted) / max(1, len(counted))), n=len(counted), aim=aim, chance=chance, counted=True
    )


def interval(part: float, n: int) -> tuple[float, float]:
    """Return the 95 % interval of a part that was measured on n (Wilson 1927)."""
    z2 = 1.96**2
    centre = (part + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (part * (1 - part) / n + z2 / (4 * n**2))) / (1 + z2 / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def markdown(figures: Sequence[Figure], note: str) -> str:
    """Return the table of the model card, and `note` under it."""
    lines = ["| measured | value | 95 % interval | aim | chance | of |", "|---|---|---|---|---|---|"]
    group = None
    for figure in figures:
        if figure.group != group:
            group = figure.group
            lines.append(f"| **{group}** | | | | | |")
        lines.append("| " + " | ".join(_cells(figure)) + " |")
    return "\n".join([*lines, "", note, ""])


def _cells(figure: Figure) -> tuple[str, ...]:
    spread = ""
    if figure.counted and figure.n:
        low, high = interval(figure.value, figure.n)
        spread = f"{100 * low:.0f}–{100 * high:.0f} %"
    aim = ""
    if figure.aim is not None:
        aim = f"{'≤' if figure.less_is_better else '≥'} {figure.shown(figure.aim)}" + ("" if figure.met else ", missed")
    count = "" if figure.n is None else str(figure.n)
    return figure.name, figure.shown(figure.value), spread, aim, figure.shown(figure.chance), count


def save_captioned_sheet(pictures: NDArray[np.uint8], captions: Sequence[str], file: Path, *, columns: int) -> None:
    """Write pictures (n, height, width, 3), enlarged, each with its caption beneath, as one PNG.

    Enlarged by repeating pixels: nothing is made to look smoother than it was drawn.
    """
    n, height, width, _ = pictures.shape
    wrapped = [textwrap.wrap(text, _LINE_CHARACTERS) for text in captions]
    rows = [range(first, min(first + columns, n)) for first in range(0, n, columns)]
    heights = [height * _SCALE + _LINE_PX * max(len(wrapped[i]) for i in row) + 2 * _GAP_PX for row in rows]
    cell_px = width * _SCALE + _GAP_PX
    sheet = Image.new("RGB", (columns * cell_px + _GAP_PX, sum(heights) + _GAP_PX), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(_FONT_PX)
    top = _GAP_PX
    for row, row_height in zip(rows, heights, strict=True):
        for column, i in enumerate(row):
            left = _GAP_PX + column * cell_px
            drawn = Image.fromarray(pictures[i]).resize((width * _SCALE, height * _SCALE), Image.Resampling.NEAREST)
            sheet.paste(drawn, (left, top))
            for number, line in enumerate(wrapped[i]):
                position = left + width * _SCALE // 2, top + height * _SCALE + number * _LINE_PX + 2
                pen.text(position, line, fill=(60, 60, 60), font=font, anchor="ma")
        top += row_height
    file.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(file, optimize=True)
