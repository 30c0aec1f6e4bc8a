"""The page of a run needs nothing else, shows the figures it was given, and survives hostile or missing input."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser

import pytest

from cardialign.cluster.pages.run_page import Picture, write_run_page
from cardialign.cluster.watching.cause import Cause

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
TRACE = [
    {"step": s, "loss": 5.0 / s, "lr": 1e-4 * s, "records_per_second": 100.0, "data_wait_share": 0.002}
    for s in range(1, 41)
]
RESULT = {
    "n": 612,
    "patients": 204,
    "macro": 0.9312,
    "low": 0.921,
    "high": 0.94,
    "classes": [
        {"code": "AFIB", "name": "Atrial fibrillation", "positives": 40, "auroc": 0.9876, "low": 0.97, "high": 0.99},
        {
            "code": "LVH",
            "name": "Left ventricular hypertrophy",
            "positives": 7,
            "auroc": 0.8123,
            "low": 0.7,
            "high": 0.9,
        },
    ],
    "macro_frequent": {"value": 0.9876, "low": 0.97, "high": 0.99, "classes": 1, "min_positives": 10},
    "prompts": {"name": "virtual-findings-v1"},
    "bootstrap": {"resamples": 1000},
    "excluded": [{"code": "WPW", "name": "Pre-excitation", "reason": "no positives among 612 records"}],
    "difference": {"value": 0.43, "low": 0.4, "high": 0.46},
}
BASELINE = {
    **RESULT,
    "macro": 0.5034,
    "classes": [{**c, "auroc": 0.5, "low": 0.4, "high": 0.6} for c in RESULT["classes"]],
}


class _Page(HTMLParser):
    """Collects what a browser would load, and checks that tags nest."""

    VOID = frozenset({"meta", "img", "br", "link", "input"})

    def __init__(self):
        super().__init__()
        self.open, self.loads, self.text, self.tags = [], [], [], []
        self.attributes = {}

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes.setdefault(tag, []).append(dict(attrs))
        self.loads += [
            value
            for name, value in attrs
            if name in ("src", "srcset", "data", "xlink:href") or (tag == "link" and name == "href")
        ]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text.append(data)


def read(path):
    page = _Page()
    page.feed(path.read_text(encoding="utf-8"))
    page.close()
    assert page.open == []
    return page


@pytest.fixture
def report(tmp_path):
    def write(**changes):
        given = {
            "title": "Demo",
            "run": {
                "facts": {"recipe": "cardialign-demo"},
                "data": [{"name": "train", "records": 6000, "findings": {"AFIB": 321}}],
                "config": {"seed": 0},
            },
            "trace": TRACE,
            "zero_shot": RESULT,
            "baseline": BASELINE,
            "pictures": [Picture("record-1", PNG, "Atrial fibrillation.", {"lateral": 0.41, "septal": 0.59})],
            "commands": {"Open MLflow": "mlflow ui", "Server": "http://127.0.0.1:5000"},
        }
        return write_run_page(tmp_path / "report.html", **{**given, **changes})

    return write


def test_the_page_loads_nothing_from_outside_and_runs_no_script(report):
    page = read(report())
    assert page.loads and all(load.startswith("data:image/png;base64,") for load in page.loads)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert "url(" not in report().read_text() and "@import" not in report().read_text()


def test_the_picture_comes_back_byte_for_byte(report):
    assert base64.b64decode(read(report()).loads[0].split(",", 1)[1]) == PNG


def test_the_figures_given_are_the_figures_shown(report):
    text = " ".join(read(report()).text)
    for figure in (
        "0.931",
        "0.921 to 0.940",
        "0.503",
        "0.988",
        "0.812",
        "612",
        "6,000",
        "321",
        "0.20 %",
        "+0.430",
        "0.41",
        "0.59",
    ):
        assert figure in text, figure
    assert "Pre-excitation (WPW): no positives among 612 records" in text
    assert "cardialign-demo" in text and "mlflow ui" in text


def test_the_page_says_why_the_run_was_no_faster_and_where_its_time_went(report):
    attack = "<i>x</i>"
    shares = {"data": 0.618, "exchange": 0.0, "straggler": 0.07, "checkpoint": 0.002, "compute": 0.31}
    cause = Cause("data", f"data: 62 % of the time goes by waiting for records, {attack}", shares, shard=attack)
    page = read(report(run={"cause": cause}))
    text = " ".join(page.text)
    assert "Why no faster?" in text and f"Data: 62 % of the time goes by waiting for records, {attack}." in text
    assert "Where the time went" in text and "i" not in page.tags
    for share in ("62 %", "0 %", "7 %", "31 %"):
        assert share in page.text, share
    assert "Why no faster?" not in "".join(read(report()).text)


def test_hostile_text_is_shown_and_never_becomes_markup(report):
    attack = '"><script>alert(1)</script>'
    classes = [{**RESULT["classes"][0], "name": attack, "code": attack}]
    page = read(
        report(
            title=attack,
            run={
                "summary": attack,
                "facts": {attack: attack},
                "data": [{"name": attack, "findings": {attack: 1}}],
                "config": {attack: attack},
            },
            zero_shot={
                **RESULT,
                "classes": classes,
                "excluded": [{"code": attack, "name": attack, "reason": attack}],
                "unprompted": [attack],
            },
            pictures=[Picture(attack, PNG, attack, {attack: 0.5})],
            commands={attack: attack, "link": f"http://x/{attack}"},
        )
    )
    assert "script" not in page.tags
    assert "alert(1)" in "".join(page.text)


def test_hostile_text_in_an_attribute_stays_in_that_attribute(report):
    attack = """a" onerror='alert(1)' <i>&"""
    link = f"https://x/{attack}"
    page = read(report(pictures=[Picture(attack, PNG)], commands={"link": link}))
    assert page.attributes["img"] == [{"alt": f"12-lead ECG: {attack}", "src": page.loads[0]}]
    assert page.attributes["a"] == [{"href": link}]
    assert "i" not in page.tags


def test_parts_that_do_not_exist_are_left_out_not_shown_empty(report):
    path = report(run={}, trace=[], zero_shot=None, baseline=None, pictures=[], commands=None)
    assert not {"h2", "h3", "table", "svg", "img"} & set(read(path).tags)


def test_nan_figures_are_called_not_available(report):
    classes = [{**RESULT["classes"][0], "low": float("nan"), "high": float("nan")}]
    text = "".join(read(report(zero_shot={**RESULT, "low": None, "high": None, "classes": classes})).text)
    assert not re.search(r"\bnan\b", text)
    assert "None" not in text
