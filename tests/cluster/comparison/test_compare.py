"""What stands beside what, by how much it differs, and what it cost: by arithmetic on files of a known truth."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
import shutil
import statistics
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cardialign.cluster.comparison.published import published
from cardialign.cluster.studies.design import Design, Variant
from cardialign.cluster.studies.outcome import keep
from cardialign.cluster.studies.table import study_table
from cardialign.pretrain.export.missing_card import add_card, sealed
from cardialign.pretrain.export.write import export_encoder
from cardialign.pretrain.run.integrity import verify_export
from tests.cluster.studies.test_tables import outcome
from tests.support.compared import (
    exported,
    mean_auroc,
    patient_bootstrap,
    run_folder,
    zero_shot_file,
)
from tests.support.scored_records import scored_records
from tests.support.small_encoder import SPEC, small_model

Call = Callable[..., Any]
EVERY = np.arange(200)
QUICK = ("--bootstrap", 20)
LATER = {"name": "ptb-xl-sub-v2", "label_set": "sub", "digest": "8" * 64}


def cells(page: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))


def test_a_paired_difference_of_two_results_is_that_of_an_independent_bootstrap(
    cardialign: Call, tmp_path: Path
) -> None:
    better = zero_shot_file(tmp_path / "better.json", 1.5, encoder="a" * 64)
    worse = zero_shot_file(tmp_path / "worse.json", 1.1, encoder="b" * 64, seed=2)
    answer = cardialign("compare", tmp_path / "worse.json", tmp_path / "better.json", "--out", tmp_path / "out")
    assert answer.code == 0, answer.json
    (found,) = answer.json["differences"]
    assert (found["mine"], found["theirs"], found["patients"]) == ("better", "worse", 100)
    assert found["difference"] == pytest.approx(mean_auroc([better], EVERY) - mean_auroc([worse], EVERY), abs=1e-12)
    low, high = patient_bootstrap([better], [worse])
    assert (found["low"], found["high"]) == pytest.approx((low, high), abs=0.015)
    page = (tmp_path / "out/compare.html").read_text()
    assert f"{100 * found['difference']:+.2f}" in page and "<script" not in page and "@import" not in page
    assert not re.search(r"(src|href)\s*=", page) and "url(" not in page, "nothing is loaded"


def test_runs_that_differ_in_their_seed_are_one_method_with_mean_and_sd(
    cardialign: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored = []
    for seed, letter in enumerate("abc"):
        encoder = exported(run_folder(tmp_path / f"ours-seed{seed}", seed=seed), letter, monkeypatch)
        scored.append(zero_shot_file(tmp_path / f"r/{letter}.json", 1.3, encoder=encoder, seed=seed))
    other = zero_shot_file(tmp_path / "r/other.json", 0.6, encoder="d" * 64, seed=9)
    runs = [tmp_path / f"ours-seed{seed}" for seed in range(3)]
    answer = cardialign("compare", *runs, tmp_path / "r", "--out", tmp_path / "out")
    assert answer.code == 0, answer.json
    ours = answer.json["figures"][0]
    values = [mean_auroc([each], EVERY) for each in scored]
    assert (ours["method"], ours["seeds"]) == ("ours (3 seeds)", 3)
    assert ours["macro_auroc"] == pytest.approx(statistics.fmean(values), abs=1e-6)
    assert ours["sd"] == pytest.approx(statistics.stdev(values), abs=1e-9)
    (found,) = answer.json["differences"]
    low, high = patient_bootstrap([other], scored, 150)
    assert (found["mine"], found["low"], found["high"]) == (
        "other",
        pytest.approx(low, abs=0.03),
        pytest.approx(high, abs=0.03),
    )
    assert ours["low"] < ours["macro_auroc"] < ours["high"], "an interval of the mean of the seeds"
    assert f"{100 * ours['macro_auroc']:.2f} ± {100 * ours['sd']:.2f}" in (tmp_path / "out/compare.html").read_text()
    with (tmp_path / "out/costs.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 3, "each run has its own cost"


def test_an_encoder_that_got_a_missingness_card_keeps_what_was_measured_before(
    cardialign: Call, tmp_path: Path
) -> None:
    run, (config, model) = run_folder(tmp_path / "mine"), small_model()
    export_encoder(config, model.state_dict(), run / "export", training={"steps": 0}, spec=SPEC, program=False)
    before = verify_export(run / "export")
    zero_shot_file(tmp_path / "zs.json", 1.2, encoder=before)
    nothing = {"value": 0.0, "low": 0.0, "high": 0.0}
    cell = {"leads": 0, "time": 0.0, "auroc": nothing, "lost": nothing}
    measured = {"measure": "zero-shot", "on": "x", "records": 9, "auroc": nothing, "presets": []}
    measured["surfaces"] = [{"chosen": "random", "cells": [cell]}]
    after = add_card(run / "export", sealed(measured, before))
    assert add_card(run / "export", sealed(measured, before)) == after, "the same card again replaces none"
    zero_shot_file(tmp_path / "later.json", 1.2, encoder=after, prompts=LATER)
    once_more = [add_card(run / "export", sealed({**measured, "on": on}, before)) for on in ("y", "z")]
    assert len({before, after, *once_more}) == 4
    answer = cardialign("compare", run, tmp_path / "zs.json", tmp_path / "later.json", "--out", tmp_path / "o", *QUICK)
    assert answer.code == 0 and answer.json["methods"] == ["mine"], answer.json


def test_a_copy_of_an_encoder_that_has_figures_is_said_to_be_one(cardialign: Call, tmp_path: Path) -> None:
    config, model = small_model()
    one = export_encoder(config, model.state_dict(), tmp_path / "one", training={"steps": 0}, spec=SPEC, program=False)
    copy = shutil.copytree(one, tmp_path / "copy")
    zero_shot_file(tmp_path / "zs.json", 1.2, encoder=verify_export(one))
    answer = cardialign("compare", one, copy, tmp_path / "zs.json", "--out", tmp_path / "o", *QUICK)
    assert answer.json["notes"] == ["copy is the same encoder as one, which its evaluations stand under"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prompts": {"name": "mine-v1", "label_set": "super", "digest": "1" * 64}}, "other prompts (mine-v1"),
        ({"shards": "6" * 64, "keep": False}, "another shard set (6666666666"),
        ({"folds": [9], "keep": False}, "other folds (9, not all)"),
        ({"protocol": {"protocol": "merl-v1", "task": "ptb-xl-super", "split": "test", "digest": "2" * 64,
                       "deviations": []}}, "another protocol (merl-v1"),
        ({"scored": dataclasses.replace(scored_records(1.0, 3), records="f" * 64)}, "other records"),
        ({"scored": scored_records(1.0, 3, ~scored_records(1.0).truth, "c" * 64)}, "other labels of the same records"),
        ({"ledger": [{"figure": "encoder", "status": "found", "patients": 7, "against": "pretraining"}]},
         "trained on what it is scored on (7 patients of pretraining)"),
    ],
)  # fmt: skip
def test_what_is_not_comparable_is_named_and_never_averaged_or_paired(
    cardialign: Call, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    for k in range(2):
        zero_shot_file(tmp_path / f"fine{k}.json", 1.5, encoder=f"{k}" * 64, seed=k)
    if "name" in changes.get("prompts", {}):  # of the same task: a protocol names it, prompts of a user do not
        both = {"task": "ptb-xl-super", "split": "test", "protocol": "p", "digest": "2" * 64, "deviations": []}
        for k in range(2):
            zero_shot_file(tmp_path / f"fine{k}.json", 1.5, encoder=f"{k}" * 64, seed=k, protocol=both)
        changes = {**changes, "protocol": both}
    zero_shot_file(tmp_path / "odd.json", 1.0, encoder="f" * 64, seed=7, **changes)
    answer = cardialign(
        "compare", *(tmp_path / f"{n}.json" for n in ("fine0", "odd", "fine1")), "--out", tmp_path / "o", *QUICK
    )
    assert answer.code == 0, answer.json
    (told,) = answer.json["not_comparable"]
    assert told.startswith("odd, zero-shot, PTB-XL super: ") and said in told
    assert [(each["mine"], each["theirs"]) for each in answer.json["differences"]] == [("fine1", "fine0")]
    text = cells((tmp_path / "o/compare.html").read_text())
    assert said in text and "Not comparable" in text
    row = next(line for line in (tmp_path / "o/tables.tex").read_text().splitlines() if line.startswith("odd"))
    assert r"\textsuperscript{a}" in row and r"\textbf" not in row, "marked, and never the best"


def test_cost_is_the_arithmetic_of_the_trace_and_what_nobody_measured_is_said(
    cardialign: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = exported(run_folder(tmp_path / "a", rate=100.0, ranks=2, steps=30), "a", monkeypatch)
    second = run_folder(tmp_path / "b & c", rate=50.0, ranks=1, steps=30, optimizer={"lr": 0.5})
    zero_shot_file(tmp_path / "a.json", 1.5, encoder=encoder)
    places = (tmp_path / "a", f"b={second}", tmp_path / "a.json")
    answer = cardialign("compare", *places, "--out", tmp_path / "o", "--price", "3600", "--currency", "EUR")
    a, b = answer.json["costs"]
    assert a["records_trained"] == 240 and a["records_per_second"] == pytest.approx(100)
    assert a["device_hours"] == pytest.approx(2 * 2.4 / 3600) and a["price_EUR"] == pytest.approx(4.8)
    assert a["device_hours_per_million"] == pytest.approx(2 * 1e6 / 100 / 3600)
    assert a["price_EUR_per_million"] == pytest.approx(20_000) and b["device_hours"] == pytest.approx(4.8 / 3600)
    assert a["encoder_parameters"] > 1000 and a["gflop_per_record"] > 0 and a["kwh"] is None
    assert b["macro_auroc_x100"] is None, "it has no evaluation"
    assert f"b has no evaluation here: `cardialign export '{second}'`" in answer.json["notes"][0], "to be pasted"
    text = cells((tmp_path / "o/compare.html").read_text())
    assert "not measured" in text and "optimizer.lr" in text and "seed 0" not in text
    run_folder(tmp_path / "c", device="NVIDIA H100 80GB HBM3")
    mixed = ("compare", tmp_path / "a", tmp_path / "c", "--out", tmp_path / "o2")
    refused = cardialign(*mixed, "--price", "2.5")
    assert refused.code == 2 and "CPU, H100" in refused.json["problem"]
    apart = cardialign(*mixed, "--price", "h100=3600", "--price", "CPU=0").json["costs"]
    assert [row["price"] for row in apart] == pytest.approx([0, 4.8])


def test_words_of_others_are_printed_and_never_run(cardialign: Call, tmp_path: Path) -> None:
    names = ["<script>alert(1)", r"\input{x}", "=cmd|' !A0", "plain_100%&#$^~"]
    for k, name in enumerate(names):
        classes = [{"code": "MI", "name": "</td><img src=x>", "positives": 9, "auroc": 0.9, "low": None, "high": None}]
        prompts = {"name": f"{name}{k}", "label_set": name, "digest": "d"}
        zero_shot_file(
            tmp_path / f"{name}.json", 1.2, encoder=str(k) * 64, seed=k, keep=False, classes=classes, shards=name,
            prompts=prompts,
        )  # fmt: skip
    run = run_folder(tmp_path / "runs" / r"<b>\input{x}", name="<script>")
    answer = cardialign("compare", *(tmp_path / f"{name}.json" for name in names), run, "--out", tmp_path / "o")
    assert answer.code == 0, answer.json
    page, tex = (tmp_path / "o/compare.html").read_text(), (tmp_path / "o/tables.tex").read_text()
    assert "<script" not in page and "<img" not in page and "&lt;script&gt;" in page
    for svg in page.split("<svg")[1:]:
        ElementTree.fromstring("<svg" + svg.split("</svg>")[0] + "</svg>")
    for tabular in re.findall(r"\\begin\{tabular\}\{(lr*)\}(.*?)\\end", tex, re.DOTALL):
        lines = [line for line in tabular[1].splitlines() if r"\\" in line and "multicolumn" not in line]
        assert lines and {len(re.findall(r"(?<!\\)&", line)) for line in lines} == {len(tabular[0]) - 1}
    commands = set(re.findall(r"\\[a-zA-Z]+", tex))
    assert not commands & {r"\input", r"\write"} and r"\textbackslash{}input\{" in tex
    with (tmp_path / "o/figures.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert all(not value.startswith(("=", "@", "+")) for row in rows for value in row.values())
    assert any(row["task"].startswith("'=cmd") and row["method"].startswith("'=cmd") for row in rows)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "is no JSON that can be read"),
        (b"[" * 5000, "nested too deeply"),
        (b"\xff\xfe", "is no JSON that can be read"),
        (b"[]", "holds no result of an evaluation"),
        (b'{"a": 1}', "holds no result of an evaluation"),
        (b'{"measure": "zero-shot", "surfaces": [], "presets": []}', "result of an evaluation that is compared here"),
        (b'{"prompts": {}, "classes": [], "bootstrap": {}, "macro": 0.5}', "it lacks 'encoder'"),
        (b'{"prompts": 1, "classes": 2, "bootstrap": 3, "macro": NaN, "encoder": "e"}', "is not as an evaluation"),
        (b'{"task": {}, "rows": [], "left_out": []}', "is not as an evaluation"),
        (b'{"study": "s", "rows": [{}], "reference": "r"}', "is not as a study writes it"),
    ],
)
def test_a_result_that_cannot_be_read_is_named(cardialign: Call, tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "bad.json").write_bytes(content)
    answer = cardialign("compare", tmp_path / "bad.json", "--out", tmp_path / "o")
    assert answer.code == 1 and said in answer.json["problem"] and "bad.json" in answer.json["problem"] + said
    assert not (tmp_path / "o/compare.html").exists()


@pytest.mark.parametrize("depth", [900, 100_000])
def test_a_run_whose_files_are_odd_is_compared_by_what_can_be_read(
    cardialign: Call, tmp_path: Path, depth: int
) -> None:
    run_folder(tmp_path / "fine")
    odd = run_folder(tmp_path / "odd")
    (odd / "config.resolved.json").write_text('{"a": ' * depth + "1" + "}" * depth)
    (odd / "metrics.jsonl").write_text(
        '{"step": 1, "loss": NaN, "records_per_second": -1}\n[1]\n{"step": 2, "loss": 1e999}'
    )
    (odd / "memory.json").write_text('{"ranks": 7, "name": [1]}')
    answer = cardialign("compare", tmp_path / "fine", odd, "--out", tmp_path / "o")
    assert answer.code == 0 and answer.json["methods"] == ["fine", "odd"], answer.json
    assert [row["name"] for row in answer.json["costs"]] == ["fine"]


def test_scores_that_were_changed_or_went_away_are_said_and_the_figures_stand(cardialign: Call, tmp_path: Path) -> None:
    for k in range(3):
        zero_shot_file(tmp_path / f"{k}.json", 1.2, encoder=f"{k}" * 64, seed=k)
    (tmp_path / "1.scores.safetensors").write_bytes((tmp_path / "2.scores.safetensors").read_bytes())
    (tmp_path / "2.scores.safetensors").unlink()
    answer = cardialign("compare", *(tmp_path / f"{k}.json" for k in range(3)), "--out", tmp_path / "o")
    assert answer.code == 0 and len(answer.json["figures"]) >= 3 and answer.json["differences"] == []
    told = " ".join(answer.json["without_difference"])
    assert "sha256 differs" in told and "are not beside it" in told


def test_places_that_cannot_be_compared_are_refused_by_name(cardialign: Call, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "o", *QUICK)
    zero_shot_file(tmp_path / "a/z.json", 1.2, encoder="a" * 64)
    zero_shot_file(tmp_path / "b/z.json", 1.0, encoder="b" * 64, seed=3)
    zero_shot_file(tmp_path / "c/z.json", 0.9, encoder="a" * 64, seed=5)
    (tmp_path / "empty").mkdir()
    a, b, c = (tmp_path / f"{letter}/z.json" for letter in "abc")
    for places, code, said in (
        ((), 2, "nothing to compare was named"),
        ((a, a), 2, "is given twice"),
        ((f"x={a}", f"x={b}"), 2, "two places are named x"),
        ((tmp_path / "empty",), 1, "empty holds nothing that can be compared"),
        ((tmp_path / "absent",), 1, "absent does not exist"),
        ((a, c), 2, f"{a} and {c} both hold zero-shot, PTB-XL super of"),
        ((a, "--price", "-1"), 2, "is no price"),
        ((a, "--reference", "nobody"), 2, "nobody is no method here"),
    ):
        answer = cardialign("compare", *places, *out)
        assert answer.code == code and said in answer.json["problem"], (places, answer.json)
    apart = cardialign("compare", f"first={a}", f"second={c}", *out)
    assert apart.json["methods"] == ["first", "second"] and len(apart.json["differences"]) == 1, "the remedy works"
    assert cardialign("compare", a, b, *out).json["methods"] == ["a/z", "b/z"], "of one name: the folder says which"
    one = cardialign("compare", a, *out)
    assert one.code == 0 and one.json["differences"] == [] and (tmp_path / "o/compare.html").exists()


def test_forty_runs_fit_on_a_page(cardialign: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for k in range(40):
        run_folder(tmp_path / f"runs/r{k:02}", rate=10.0 + k, optimizer={"lr": 0.001 * (k + 1)})
    for k in range(8):
        zero_shot_file(tmp_path / f"z/{k}.json", 1 + k / 50, encoder=f"{k:064}", seed=k)
    answer = cardialign("compare", tmp_path / "runs", tmp_path / "z", "--out", tmp_path / "o", *QUICK)
    assert answer.code == 0 and len(answer.json["methods"]) == 48, answer.json
    assert len(answer.json["differences"]) == 8 * 7 / 2
    page = (tmp_path / "o/compare.html").read_text()
    assert page.count("(7 of 7)") == 2 * 2 and len(page) < 2_000_000, "curves are six a chart"


def test_the_variants_of_a_study_differ_by_what_its_own_table_says(cardialign: Call, tmp_path: Path) -> None:
    good, bad = Variant("good", "all", {}), Variant("bad", "less", {"a.b": 1})
    design = Design("mine", "recipe", "good", (good, bad))
    outcomes = [
        outcome(each, fold, seed, quality)
        for each, quality in ((good, 2.0), (bad, 0.5)) for fold in (1, 2) for seed in (0, 1)
    ]  # fmt: skip
    outcomes = [keep(each, tmp_path / "s/cells" / each.cell.name) for each in outcomes]
    table = study_table(design, outcomes, resamples=100)
    facts = {"shards": "5" * 64, "prompts": "ptb-xl-super-v2"}
    (tmp_path / "s/table.json").write_text(json.dumps({**table, **facts}))
    answer = cardialign("compare", tmp_path / "s", "--out", tmp_path / "o", "--bootstrap", 100)
    assert answer.code == 0 and answer.json["methods"] == ["mine/good", "mine/bad"], answer.json
    found = {each["kind"]: each for each in answer.json["differences"]}
    for kind, measure in (("zero-shot", "zero_shot"), ("linear probe", "probe")):
        row = table["rows"][1][measure]
        ahead = (-found[kind]["difference"], -found[kind]["high"], -found[kind]["low"])
        assert ahead == pytest.approx((row["reference_ahead"], row["ahead_low"], row["ahead_high"]), abs=1e-9)
        assert found[kind]["task"] == "super"
    assert "Settings of study mine" in (tmp_path / "o/compare.html").read_text()


def test_published_figures_have_the_means_that_were_computed_of_them_elsewhere_and_a_source() -> None:
    rows = {(row.kind, row.method): row for row in published().rows}
    means = {method: [row.mean[share] for share in (0.01, 0.1, 1.0)] for (kind, method), row in rows.items()
             if kind == "linear probe"}  # fmt: skip
    assert len(means) == 18
    for method, expected in {
        "SimCLR": [58.24, 66.70, 72.82], "ST-MEM": [56.42, 63.39, 69.60], "MERL": [65.97, 81.70, 86.65],
        "MELP": [80.68, 86.66, 90.00], "ECG-FM": [74.67, 84.33, 88.82], "FG-CLEP": [73.12, 85.73, 92.17],
        "W2V2+CMSC+RLM": [70.09, 81.12, 87.30], "Random initialisation": [55.09, 67.37, 77.21],
    }.items():  # fmt: skip
        assert [float(text) for text in means[method]] == pytest.approx(expected, abs=0.0101)
    zero_shot = {method: row.mean[None] for (kind, method), row in rows.items() if kind == "zero-shot"}
    assert {name: float(text) for name, text in zero_shot.items()} == pytest.approx(
        {"MERL": 75.3, "MELP": 79.0, "CLEP": 79.92, "FG-CLEP": 82.27, "FG-CLEP-ENS": 82.89}, abs=0.06
    )
    assert all(row.source and row.protocol for row in rows.values())
    assert {m for (_, m), row in rows.items() if row.other_splits} == {
        "CLEP", "FG-CLEP", "FG-CLEP-ENS", "Random initialisation",
    }  # fmt: skip
    assert {row.method for row in rows.values() if row.rerun} == {each["method"] for each in published().reruns}
