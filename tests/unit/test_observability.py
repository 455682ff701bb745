"""engine/observability: the example dashboard and the alert rules speak of metrics that there are, and promtool takes them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from engine.metrics import METRICS, Kind

HOUSE = Path(__file__).parents[2]
DATA = HOUSE / "engine" / "observability"
ALERTS: dict[str, Any] = yaml.safe_load((DATA / "alerts.yaml").read_text())
RULES: list[dict[str, Any]] = [rule for group in ALERTS["groups"] for rule in group["rules"]]
BOARD: dict[str, Any] = json.loads((DATA / "grafana.json").read_text())

#: A name that is followed by no bracket is that of a metric, but for these words of the language and labels after ``by``.
_NAME = re.compile(r"\b(engine_[a-z_]+|process_[a-z_]+)\b(?:\{([^}]*)\})?")
_BY = re.compile(r"\bby \(([^)]*)\)")
_OF_PROCESSES = {"process_cpu_seconds_total", "process_resident_memory_bytes"}
#: What Prometheus itself adds to every series, and to buckets.
_ADDED = {"instance", "job", "le"}


def expressions() -> Iterator[tuple[str, str]]:
    """Where it stands, and the PromQL."""
    for rule in RULES:
        yield rule["alert"], rule["expr"]
    for panel in BOARD["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"]
    for variable in BOARD["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["name"], variable["query"]["query"].removeprefix("label_values(").partition(",")[0]


EXPRESSIONS = list(expressions())


def series() -> dict[str, set[str]]:
    """Every name that a scrape may bring, and its labels."""
    names: dict[str, set[str]] = {name: set() for name in _OF_PROCESSES}
    for metric in METRICS:
        endings = ("_bucket", "_sum", "_count") if metric.kind is Kind.HISTOGRAM else ("",)
        names |= {metric.name + ending: set(metric.labels) for ending in endings}
    return names


SERIES = series()


@pytest.mark.parametrize(("place", "expression"), EXPRESSIONS, ids=[f"{n}-{place}" for n, (place, _) in enumerate(EXPRESSIONS)])
def test_every_metric_and_label_that_is_used_exists(place: str, expression: str) -> None:
    found = _NAME.findall(expression)
    assert found, f"{place} asks for nothing of ours"
    labels: set[str] = set()
    for name, matchers in found:
        assert name in SERIES, f"{place} asks for {name}"
        labels |= SERIES[name]
        for matcher in re.findall(r"(\w+)\s*[=!]", matchers):
            assert matcher in SERIES[name] | _ADDED, f"{place}: {name} has no label {matcher}"
    for by in _BY.findall(expression):
        assert {label.strip() for label in by.split(",")} <= labels | _ADDED, place


def test_every_alert_says_what_is_wrong_and_what_to_do() -> None:
    assert len({rule["alert"] for rule in RULES}) == len(RULES)
    for rule in RULES:
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"].keys() == {"summary", "description"}


def test_panels_lie_side_by_side_and_name_no_data_source_of_somebody() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in BOARD["panels"]:
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
        assert panel.get("datasource", {}).get("uid", "${datasource}") == "${datasource}"
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(BOARD["panels"])


@pytest.fixture
def promtool() -> str:
    """Prometheus' own checker."""
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("no promtool on the PATH: it comes with Prometheus (Debian: apt install prometheus)")
    return found


def ran(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_takes_the_rules_and_they_fire_when_they_should(promtool: str, tmp_path: Path) -> None:
    shutil.copy(DATA / "alerts.yaml", tmp_path)
    shutil.copy(HOUSE / "tests" / "unit" / "samples" / "alerts_test.yaml", tmp_path)
    ran(promtool, "check", "rules", str(tmp_path / "alerts.yaml"))
    ran(promtool, "test", "rules", str(tmp_path / "alerts_test.yaml"))


def test_promtool_takes_what_the_dashboard_asks(promtool: str, tmp_path: Path) -> None:
    asked = [expression.replace("$__rate_interval", "5m") for place, expression in EXPRESSIONS]
    rules = [{"record": f"panel:{number}", "expr": expression} for number, expression in enumerate(asked)]
    file = tmp_path / "panels.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    ran(promtool, "check", "rules", "--lint=none", str(file))
