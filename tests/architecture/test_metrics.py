"""Metrics, their documentation, and what is built upon their names agree."""

from __future__ import annotations

import re

from service.telemetry import metric_names
from tests.architecture.repository import ROOT

NAMES = {value for name, value in vars(metric_names).items() if name.isupper()}


def test_every_metric_is_documented_and_no_other() -> None:
    text = (ROOT / "docs/operations.md").read_text("utf-8")
    section = text.split("\n## Metrics\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(darkroom_\w+)` \| (counter|gauge|histogram)[ ;|]", section, re.MULTILINE)
    assert len(rows) == len(NAMES)
    assert {name for name, _ in rows} == NAMES
    for name, kind in rows:
        assert name.endswith("_total") == (kind == "counter"), name
