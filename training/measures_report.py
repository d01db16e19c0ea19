"""How measured figures are shown: as a table."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


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
