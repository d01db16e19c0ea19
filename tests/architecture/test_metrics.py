"""Metrics, their documentation, and what is built upon their names agree."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.telemetry import metric_names
from tests.architecture.repository import ROOT

NAMES = {value for name, value in vars(metric_names).items() if name.isupper()}
PROMETHEUS = ROOT / "deploy" / "prometheus"
ALERTS, CONFIGURATION = PROMETHEUS / "alerts.yml", PROMETHEUS / "prometheus.yml"
PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed; Debian's prometheus has it")


def documented() -> list[tuple[str, str]]:
    """Name and kind of each metric in the tables of the documentation."""
    text = (ROOT / "docs/operations.md").read_text("utf-8")
    section = text.split("\n## Metrics\n")[1].split("\n## ")[0]
    return re.findall(r"^\| `(darkroom_\w+)` \| (counter|gauge|histogram)[ ;|]", section, re.MULTILINE)


def samples() -> set[str]:
    """Every name that a query may ask for."""
    parts = {
        f"{name}_{part}" for name, kind in documented() if kind == "histogram" for part in ("bucket", "sum", "count")
    }
    return parts | {name for name, kind in documented() if kind != "histogram"}


def asked(query: str) -> set[str]:
    return set(re.findall(r"\bdarkroom_\w+", query))


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(ALERTS.read_text("utf-8"))["groups"]
    return group["rules"]


def queries_of_the_dashboard() -> list[str]:
    board = json.loads((ROOT / "deploy/grafana/dashboard.json").read_text("utf-8"))
    return [target["expr"] for panel in board["panels"] for target in panel.get("targets", [])]


def test_every_metric_is_documented_and_no_other() -> None:
    rows = documented()
    assert len(rows) == len(NAMES)
    assert {name for name, _ in rows} == NAMES
    for name, kind in rows:
        assert name.endswith("_total") == (kind == "counter"), name


def test_alerts_ask_for_what_there_is() -> None:
    for rule in rules():
        assert asked(rule["expr"]) <= samples(), rule["alert"]
        assert re.fullmatch(r"Darkroom[A-Z]\w+", rule["alert"])
        assert rule["labels"]["severity"] in {"page", "warn"}
        assert rule["annotations"]["summary"]
    assert len({rule["alert"] for rule in rules()}) == len(rules())


def test_dashboard_shows_every_metric_and_asks_for_no_other() -> None:
    queries = queries_of_the_dashboard()
    assert len(queries) >= len(NAMES) - 5
    shown = set().union(*map(asked, queries))
    assert shown <= samples()
    assert {name for name in NAMES if not any(each.startswith(name) for each in shown)} == set()


def test_panels_of_the_dashboard_lie_beside_each_other() -> None:
    board = json.loads((ROOT / "deploy/grafana/dashboard.json").read_text("utf-8"))
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + dx, at["y"] + dy) for dx in range(at["w"]) for dy in range(at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


def test_what_is_scraped_is_what_the_containers_serve() -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))["services"]
    jobs = yaml.safe_load(CONFIGURATION.read_text("utf-8"))["scrape_configs"]
    scraped = {
        name: found["port"] for job in jobs for found in job.get("dns_sd_configs", ()) for name in found["names"]
    }
    assert scraped
    for name, port in scraped.items():
        variables = compose[name]["environment"]
        assert variables["DARKROOM_METRICS_PORT"] == str(port), name
        assert variables["DARKROOM_METRICS_HOST"] == "0.0.0.0"
        # Within the networks of the containers only.
        assert not [each for each in compose[name].get("ports", ()) if str(port) in str(each)]
        assert "data" in compose[name]["networks"]


@needs_promtool
@pytest.mark.parametrize(
    "command",
    [
        ("check", "config", CONFIGURATION),
        ("check", "rules", ALERTS),
        ("test", "rules", PROMETHEUS / "alerts_test.yml"),
    ],
    ids=["configuration", "alerts", "what alerts fire on"],
)
def test_prometheus_takes_it(command: tuple[str, str, Path]) -> None:
    done = subprocess.run(
        [str(PROMTOOL), *map(str, command)], capture_output=True, text=True, timeout=60, check=False, cwd=PROMETHEUS
    )
    assert done.returncode == 0, done.stdout + done.stderr
