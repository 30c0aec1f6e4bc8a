"""Dashboard and alert rules speak of metrics that a run serves, and each rule fires on the series that is its own.

Rules are evaluated by Prometheus itself (`promtool`, Debian package `prometheus`), where it is installed.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from cardialign.cluster.watching.metrics import RunCollector

ROOT = Path(__file__).parents[2]
GRAFANA, SERIES = ROOT / "deploy" / "grafana", Path(__file__).parent / "alerts_test.yaml"
NAME = re.compile(r"\bcardialign_\w+")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Names of the series that a scrape finds."""
    families = RunCollector(tmp_path_factory.mktemp("run"), "any").collect()
    return {f"{family.name}_total" if family.type == "counter" else family.name for family in families}


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    return json.loads((GRAFANA / "dashboard.json").read_text())


@pytest.fixture(scope="module")
def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((GRAFANA / "alerts.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def test_every_panel_asks_for_what_a_run_serves(dashboard: dict[str, Any], served: set[str]) -> None:
    expressions = {panel["title"]: [each["expr"] for each in panel["targets"]] for panel in dashboard["panels"]}
    expressions["marks"] = [each["expr"] for each in dashboard["annotations"]["list"]]
    expressions["variables"] = [v["definition"] for v in dashboard["templating"]["list"] if v["type"] == "query"]
    for title, asked in expressions.items():
        names = [name for expression in asked for name in NAME.findall(expression)]
        assert names and set(names) <= served, f"{title}: {set(names) - served}"


def test_panels_have_a_name_a_place_and_a_data_source_of_their_own(dashboard: dict[str, Any]) -> None:
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels}) == len(panels)
    covered: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24, f"{panel['title']} ends beyond Grafana's 24 columns"
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not covered & cells, f"{panel['title']} lies on another panel"
        covered |= cells
        assert panel["datasource"]["uid"] == "${datasource}", "a dashboard of others' Prometheus works as it is"


def test_every_rule_speaks_of_what_a_run_serves_and_says_what_to_do(
    rules: list[dict[str, Any]], served: set[str]
) -> None:
    assert {rule["alert"].removeprefix("Cardialign") for rule in rules} >= {
        "Stalled", "Collapsing", "CheckpointTooOld", "DataBound", "Restarting",
    }  # fmt: skip
    for rule in rules:
        assert set(NAME.findall(rule["expr"])) <= served, rule["alert"]
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert "{{ $labels.run }}" in rule["annotations"]["summary"] and rule["annotations"]["description"]


def test_every_rule_has_a_series_that_makes_it_fire(rules: list[dict[str, Any]]) -> None:
    (given,) = yaml.safe_load(SERIES.read_text())["tests"]
    fired = {name for each in given["promql_expr_test"] for s in each["exp_samples"] for name in alerts_in(s["labels"])}
    assert fired == {rule["alert"] for rule in rules}
    known = {name for rule in rules for name in NAME.findall(rule["expr"])}
    assert {name for each in given["input_series"] for name in NAME.findall(each["series"])} == known


def alerts_in(labels: str) -> list[str]:
    return re.findall(r'alertname="(\w+)"', labels)


@pytest.mark.slow
def test_each_rule_fires_on_its_series_and_on_no_other() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian: apt-get install prometheus)")
    done = subprocess.run([promtool, "test", "rules", str(SERIES)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
