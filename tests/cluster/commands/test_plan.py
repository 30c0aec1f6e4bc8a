"""`cardialign plan`: every mistake at once, data that is counted, money that adds up, and nothing heavy."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cardialign.data_shards.shard_set.shard_set import ShardSet
from tests.cluster.conftest import Answer
from tests.support.readme import ROOT

Call = Callable[..., Answer]
BEATS = ("heartlang-tiny", "heartlang-quantiser-tiny")
"""Beside the slow rest: which beats there are, and the word of each, is asked of data that a plan has not."""
LIGHT = ("--recipe", "cardialign-demo", "--set", "encoder.beat=false", "--set", "encoder.rhythm=false")
TINY = (*LIGHT, "--set", "training.global_batch=8", "--sampling-rate", 100, "--seconds", 2.5)


def test_every_mistake_is_told_at_once(cardialign: Call, tmp_path: Path) -> None:
    answer = cardialign(
        "plan", *LIGHT, "--records", 1000, "--nodes", 0, "--gpus-per-node", "two", "--kind", "B9", "--price", -1,
        "--mfu", 3, "--data-rate", tmp_path / "no.json", "--set", "training.global_bath=3",
        "--set", "encoder.width=7",
    )  # fmt: skip
    assert answer.code == 2
    problem = answer.json["problem"]
    for said in (
        "--nodes 0 is not a whole number of 1 or more", "--gpus-per-node two", "--kind B9", "H100", "--price -1",
        "--mfu 3 is not a number from 0.001 to 1", "no.json", "global_batch", "encoder: width 7",
    ):  # fmt: skip
        assert said in problem, said


def test_a_world_that_is_too_large_is_told_the_legal_ones(cardialign: Call) -> None:
    answer = cardialign("plan", *TINY, "--records", 100, "--nodes", 2, "--gpus-per-node", 8, "--kind", "A100")
    assert answer.code == 2 and "16 ranks" in answer.json["problem"]
    assert "legal are 1 to 8" in answer.json["remedy"] and "1, 2, 4, 8" in answer.json["remedy"]


def test_what_must_be_said_is_asked_for(cardialign: Call) -> None:
    nothing = cardialign("plan")
    assert "--recipe" in nothing.json["problem"] + nothing.json["remedy"] and "--kind" in nothing.json["problem"]
    epochs = cardialign("plan", *TINY, "--kind", "CPU")
    assert epochs.code == 1 or epochs.code == 2
    assert "--records" in epochs.json["remedy"]


def test_what_would_be_passed_over_is_refused(cardialign: Call, shards: Path) -> None:
    told = cardialign("plan", *LIGHT, "--records", 1000, "--folds", "1-8", "--split", "train", "--kind", "CPU")
    assert told.code == 2 and "--folds and --split would choose nothing" in told.json["problem"]
    told = cardialign("plan", *LIGHT, "--shards", shards, "--sampling-rate", 250, "--kind", "CPU")
    assert told.code == 2 and "--sampling-rate would say nothing" in told.json["problem"]
    told = cardialign("plan", *TINY, "--records", 1000, "--kind", "CPU", "--currency", "EUR")
    assert told.code == 2 and "--currency would say nothing" in told.json["problem"]
    told = cardialign("plan", *TINY, "--records", 1000, "--kind", "CPU", "--price", "1e400")
    assert told.code == 2 and "--price 1e400 is not a number of 0 or more" in told.json["problem"]


def test_shards_are_counted_and_money_adds_up(cardialign: Call, shards: Path, tmp_path: Path) -> None:
    rate = tmp_path / "rate.json"
    rate.write_text(json.dumps({"stream_records_per_s_per_core": 500.0}) + "\n")
    answer = cardialign(
        "plan", *LIGHT, "--set", "training.global_batch=16", "--shards", shards, "--kind", "H100", "--nodes", 2,
        "--gpus-per-node", 2, "--price", 3, "--currency", "EUR", "--data-rate", rate, "--mfu", 0.5,
    )  # fmt: skip
    assert answer.code == 0, answer.err
    plan, duration = answer.json, answer.json["duration"]
    records = int((ShardSet.open(shards).report >= 0).sum())
    assert duration["records_per_epoch"] == records
    assert duration["steps"] == -(-6 * records // 16)  # the recipe's 6 epochs
    assert plan["world_size"] == 4 and plan["predicted"] is True
    assert duration["device_hours"] == pytest.approx(4 * duration["steps"] * plan["step"]["seconds"] / 3600)
    assert duration["cost"] == pytest.approx(3 * duration["device_hours"]) and duration["currency"] == "EUR"
    assert duration["energy_kwh"] == pytest.approx(0.7 * duration["device_hours"])  # 700 W of an H100
    assert plan["step"]["arithmetic_seconds"] == pytest.approx(plan["step"]["flop_per_rank"] / (0.5 * 67e12))  # fp32
    assert plan["data_needed"]["available_records_per_second"] == 500 * 2 * 4  # 2 data.threads of each of 4 ranks
    assert plan["text_bank_bytes"] == 4 * 384 * ShardSet.open(shards).manifest["counts"]["reports"]  # MiniLM's width
    assert plan["exchange_scheme"] == "gather" and all(plan["fits"])
    assert any("MFU 0.5: given" in said for said in plan["assumptions"])


def test_a_machine_of_ones_own_and_its_mistakes(cardialign: Call, tmp_path: Path) -> None:
    machine = tmp_path / "mine.yaml"
    machine.write_text("bf16_tflops: 100\nfp32_tflops: 50\nmemory_gib: 0.5\nrecords_per_second: 40\nwats: 3\n")
    words = ("plan", *TINY, "--records", 64, "--kind", machine)
    wrong = cardialign(*words)
    assert wrong.code == 2 and "unknown key wats" in wrong.json["problem"]
    machine.write_text("bf16_tflops: 100\nfp32_tflops: 50\nmemory_gib: 0.5\nrecords_per_second: 40\n")
    plan = cardialign(*words).json
    assert plan["step"]["seconds"] == pytest.approx(8 / 40)
    assert plan["fits"] == [False] * 4  # 1.5 GiB of CUDA alone are more


@pytest.mark.parametrize(
    "recipe",
    [
        pytest.param(name, marks=[] if name in BEATS else [pytest.mark.slow])
        for name in sorted(path.stem for path in (ROOT / "pretrain" / "recipes").glob("*.yaml"))
    ],
)
def test_every_recipe_that_is_shipped_is_planned(cardialign: Call, recipe: str) -> None:
    answer = cardialign("plan", "--recipe", recipe, "--records", 800_000, "--kind", "A100", "--gpus-per-node", 2)
    assert answer.code == 0, answer.err
    assert answer.json["step"]["seconds"] > 0 and answer.json["parameters"]["trained"] > 0


@pytest.mark.slow
def test_the_largest_recipe_is_planned_without_anything_heavy() -> None:
    code = """
import json, sys
from cardialign.cluster.main import main
from cardialign.data_shards.benchmarks.process import peak_memory
words = "plan --recipe cardialign-xl --records 770000 --nodes 4 --gpus-per-node 8 --kind H200 --json"
code = main(words.split())
heavy = sorted({"ray", "mlflow", "deepspeed", "transformers"} & set(sys.modules))
print(json.dumps([code, heavy, peak_memory()]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    *_, plan, last = done.stdout.strip().splitlines()
    exit_code, heavy, held = json.loads(last)
    assert exit_code == 0 and heavy == [] and held < 1.5 * 2**30  # no model of 900 MiB was made
    values = json.loads(plan)
    assert values["parameters"]["frozen"] > 60e6  # MedCPT's embeddings and its first 6 layers, by its published sizes
    assert any("published sizes" in said for said in values["assumptions"])


@pytest.mark.slow
def test_a_published_recipe_on_t5_is_planned_where_t5_is_not(
    cardialign: Call, caplog: pytest.LogCaptureFixture
) -> None:
    """At the published scale `plan` is all that is said of D-BETA: it must not stop at a download."""
    answer = cardialign("plan", "--recipe", "d-beta-published", "--records", 1000, "--kind", "H100", "--price", 2)
    assert answer.code == 0, answer.err
    assert answer.json["duration"]["cost"] > 0
    # the encoder of T5 1.1 base, 109,628,544, and a projection of 768 x 768
    assert answer.json["parameters"]["text"] == pytest.approx(109_628_544 + 768 * 768, rel=1e-4)
    assert any("published sizes (T5 base)" in said for said in answer.json["assumptions"])
    assert not [each for each in caplog.records if "cardialign-plan-" in each.getMessage()], "a folder of a moment"
