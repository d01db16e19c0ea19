"""What a call teaches of calls like it."""

from __future__ import annotations

from enum import Enum, auto
from typing import Any


class Lesson(Enum):
    """What may be learnt from a call that was just made."""

    #: What it took, in memory and time.
    EVERYTHING = auto()
    #: Its time. A repeated recording takes no memory anew.
    TIME = auto()
    #: It was compiled or recorded first.
    NOTHING = auto()


def lesson_of(work: Any) -> Lesson:
    """Return what the call teaches that this work was done by, the first of several; works need not say."""
    return getattr(work, "lesson", Lesson.EVERYTHING)
