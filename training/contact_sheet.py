"""Pictures on one sheet, each with its caption beneath."""

import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

#: Pictures are enlarged this much.
_SCALE = 2
_GAP_PX = 8
_FONT_PX = 11
_LINE_PX = 14
#: Characters of a line under a picture of 64 px; the font is about 5.5 px wide.
_LINE_CHARACTERS = 23
_INK = (60, 60, 60)


def contact_sheet(
    pictures: Sequence[Image.Image], captions: Sequence[str], *, columns: int, smooth: bool
) -> Image.Image:
    """Return the pictures (RGB, all of one size) enlarged, row by row on white, each with its caption beneath.

    Not `smooth`, they are enlarged by repeating pixels: nothing is made to look smoother than it was drawn.
    """
    width, height = (side * _SCALE for side in pictures[0].size)
    wrapped = [textwrap.wrap(text, _LINE_CHARACTERS) for text in captions]
    rows = [range(first, min(first + columns, len(pictures))) for first in range(0, len(pictures), columns)]
    heights = [height + 2 * _GAP_PX + _LINE_PX * max(len(wrapped[i]) for i in row) for row in rows]
    whole = Image.new("RGB", (columns * (width + _GAP_PX) + _GAP_PX, sum(heights) + _GAP_PX), "white")
    pen, font = ImageDraw.Draw(whole), ImageFont.load_default(_FONT_PX)
    resampling = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
    for n, (picture, lines) in enumerate(zip(pictures, wrapped, strict=True)):
        row, column = divmod(n, columns)
        x, y = _GAP_PX + column * (width + _GAP_PX), _GAP_PX + sum(heights[:row])
        whole.paste(picture.resize((width, height), resampling), (x, y))
        for number, line in enumerate(lines):
            pen.text((x + width / 2, y + height + _GAP_PX / 2 + number * _LINE_PX), line, _INK, font, anchor="ma")
    return whole
