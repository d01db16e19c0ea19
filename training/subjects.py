"""Names of what the model draws: `subjects.txt`, one emoji name (CLDR's) a line."""

from pathlib import Path

SUBJECTS = tuple(Path(__file__).with_name("subjects.txt").read_text(encoding="utf-8").split("\n")[:-1])
