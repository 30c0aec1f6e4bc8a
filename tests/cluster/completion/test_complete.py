"""From answers to completed reports: what is kept is what the ECG says, record by record, and nothing else changes."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cardialign.cluster.completion.endpoint import Endpoint
from cardialign.cluster.completion.prompt import messages
from cardialign.cluster.completion.stub import MODEL, StubServer, features_for
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.pretrain.config import load_config
from cardialign.pretrain.export.loaded import load_encoder
from cardialign.pretrain.export.write import export_encoder
from cardialign.pretrain.methods.base import create_method
from tests.support.chat_server import Reply, chat_server
from tests.support.tiny_set import SMALL, SPEC

Call = Callable[..., Any]
SCALE, BIAS = 30.0, -0.5


@pytest.fixture(scope="module")
def coarse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe's encoder with fresh weights, and a scale and bias that spread its probabilities."""
    config = load_config("fg-clep", SMALL)
    torch.manual_seed(0)
    state = create_method(config, SPEC).state_dict()
    state["logit_scale.log_scale"] = torch.tensor([math.log(SCALE)])
    state["logit_bias"] = torch.tensor([BIAS])
    return export_encoder(
        config, state, tmp_path_factory.mktemp("coarse") / "encoder", training={}, spec=SPEC, program=False
    )


def words(shards: Path, out: Path, coarse: Path, address: str, *more: object) -> list[object]:
    given = ["text", "complete", shards, "--out", out, "--encoder", coarse, "--endpoint", address, "--model", MODEL]
    return [*given, "--answers", out.parent / "answers", "--guard", "virtual-findings-v2", *more]


def said(shard_set: ShardSet) -> list[tuple[str, ...]]:
    table = [tuple(each) for each in shard_set.reports.column("statements").to_pylist()]
    return [table[number] if number >= 0 else () for number in shard_set.report.tolist()]


@pytest.fixture(scope="module")
def completed(
    tmp_path_factory: pytest.TempPathFactory, shards: Path, coarse: Path
) -> tuple[Path, list[dict[str, Any]]]:
    """A completion at the median probability, with made-up features; and the stub's share of the work."""
    import threading

    from cardialign.cluster.main import main

    root = tmp_path_factory.mktemp("completed")
    with StubServer("127.0.0.1", 0, made_up=0.5) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        code = main([str(w) for w in words(shards, root / "out", coarse, server.address, "--threshold", 0.4, "--json")])
        answered = server.answered
        server.shutdown()
    assert code == 0
    return root, [{"answered": answered}]


def probability(encoder: Any, shard_set: ShardSet, row: int, feature: str) -> float:
    """By the door for single arrays, in plain numbers."""
    record = shard_set.read_record(row)
    ecg = encoder.embed(
        record.millivolts()[None],
        sampling_rate=SPEC.sampling_rate,
        lead_mask=record.lead_mask[None],
        valid_samples=np.array([record.valid_samples]),
        allow_missing_leads=True,
    )[0]
    text = encoder.embed_text([f"{feature}."])[0]
    return 1 / (1 + math.exp(-(SCALE * sum(float(a) * float(b) for a, b in zip(ecg, text, strict=True)) + BIAS)))


def test_a_feature_is_kept_exactly_where_its_own_ecg_says_so(
    completed: tuple[Path, list[dict[str, Any]]], shards: Path, coarse: Path
) -> None:
    root, _ = completed
    plain, other = ShardSet.open(shards), ShardSet.open(shards, reports=root / "out")
    encoder, before, after = load_encoder(coarse), said(plain), said(other)
    texts = plain.reports.column("text").to_pylist()
    kept = dropped = 0
    for row in range(0, len(plain), 3):
        own, number = before[row], int(plain.report[row])
        assert after[row][: len(own)] == own
        added = set(after[row][len(own) :])
        if number < 0:
            assert after[row] == ()
            continue
        for feature in features_for(texts[number], made_up=0.5):
            p = probability(encoder, plain, row, feature)
            if abs(p - 0.4) < 1e-4:
                continue
            if p > 0.4 and feature not in added:
                # the guard's doing: the report says it, or it names a class
                assert feature.casefold() in {s.casefold() for s in own}, (feature, own)
                continue
            assert (feature in added) == (p > 0.4), (row, feature, p)
            kept, dropped = kept + (p > 0.4), dropped + (p <= 0.4)
        assert added <= set(features_for(texts[number], made_up=0.5))
    assert kept > 5 and dropped > 5


def test_records_with_equal_reports_come_to_differ_and_each_report_was_asked_once(
    completed: tuple[Path, list[dict[str, Any]]], shards: Path
) -> None:
    root, (facts,) = completed
    plain, other = ShardSet.open(shards), ShardSet.open(shards, reports=root / "out")
    assert facts["answered"] == plain.report_count
    (step,) = other.overlay.made  # type: ignore[union-attr]
    assert (step["kind"], step["model"], step["threshold"], step["prompt_version"]) == ("completion", MODEL, 0.4, 1)
    assert other.report_count > plain.report_count


def test_the_sheet_and_the_table_of_features_are_for_people(
    completed: tuple[Path, list[dict[str, Any]]], shards: Path
) -> None:
    root, _ = completed
    with (root / "out.sheet.csv").open(encoding="utf-8") as file:
        sheet = list(csv.DictReader(file))
    assert list(sheet[0]) == ["record", "report", "feature", "right", "probability", "kept"]
    assert {row["right"] for row in sheet} == {""} and {row["kept"] for row in sheet} == {"yes", "no"}
    other = ShardSet.open(shards, reports=root / "out")
    row = next(each for each in sheet if each["kept"] == "yes")
    index = int(other.select(keys=[row["record"]]).rows[0])
    assert row["feature"] in said(other)[index] and float(row["probability"]) > 0.4
    with (root / "out.features.csv").open(encoding="utf-8") as file:
        features = {each["feature"]: each for each in csv.DictReader(file)}
    counted = [s for statements in said(other) for s in statements]
    own = [s for statements in said(ShardSet.open(shards)) for s in statements]
    for name, each in features.items():
        assert int(each["kept"]) == counted.count(name) - own.count(name), name


def test_the_same_command_asks_nothing_again_and_other_thresholds_cost_nothing(
    cardialign: Call, completed: tuple[Path, list[dict[str, Any]]], shards: Path, coarse: Path
) -> None:
    root, _ = completed
    dead = "http://127.0.0.1:9/v1"
    again = cardialign(*words(shards, root / "again", coarse, dead, "--threshold", 0.4))
    assert again.code == 0 and again.json["reports"]["asked_now"] == 0
    assert said(ShardSet.open(shards, reports=root / "again")) == said(ShardSet.open(shards, reports=root / "out"))
    all_kept = cardialign(*words(shards, root / "all", coarse, dead, "--threshold", 0, "--answered-only"))
    assert all_kept.json["pairs"]["kept"] == all_kept.json["pairs"]["scored"] > again.json["pairs"]["kept"] > 0
    shares = [row["kept"] for row in all_kept.json["acceptance"]]
    assert shares == sorted(shares, reverse=True)
    assert all_kept.json["tokens"] == again.json["tokens"] and all_kept.json["cost"] is None
    printed = cardialign(*words(shards, root / "printed", coarse, dead, "--prices", 1, 2), plain=True)
    assert printed.code == 0 and "threshold" in printed.out and "of strangers" in printed.out


def test_only_some_folds_are_completed(
    cardialign: Call, completed: tuple[Path, list[dict[str, Any]]], shards: Path, coarse: Path
) -> None:
    root, _ = completed
    some = cardialign(
        *words(shards, root / "some", coarse, "http://127.0.0.1:9/v1", "--threshold", 0, "--folds", "1-5")
    )
    assert some.code == 0
    plain, other = ShardSet.open(shards), ShardSet.open(shards, reports=root / "some")
    changed = {int(plain.fold[r]) for r, (a, b) in enumerate(zip(said(plain), said(other), strict=True)) if a != b}
    assert changed and changed <= {1, 2, 3, 4, 5}


def test_what_is_wrong_is_said_before_anything_is_asked(
    cardialign: Call, shards: Path, coarse: Path, exported: Path, tmp_path: Path
) -> None:
    with chat_server(lambda report, before: Reply("[]")) as chat:

        def refused(*more: object, encoder: Path = coarse, out: str = "out") -> Any:
            answer = cardialign(*words(shards, tmp_path / out, encoder, chat.address, *more))
            assert answer.code in (1, 2) and answer.json["remedy"]
            return answer

        assert "cosines are no probabilities" in refused(encoder=exported).json["problem"]
        assert "--prices" in refused("--budget-cost", 3).json["remedy"]
        assert "not set" in refused("--key-env", "NOBODY_HAS_THIS").json["problem"]
        (tmp_path / "there").mkdir()
        assert "exists already" in refused(out="there").json["problem"]
        unknown = cardialign(*words(shards, tmp_path / "out", coarse, chat.address)[:-1], "nobody-v1")
        assert unknown.code == 2 and "nobody-v1" in unknown.json["problem"]
        assert not chat.asked


def test_an_endpoint_in_prose_and_one_that_is_down_leave_no_reports_and_say_what_to_do(
    cardialign: Call, shards: Path, coarse: Path, tmp_path: Path
) -> None:
    with chat_server(lambda report, before: Reply("It shows a rhythm.")) as chat:
        prose = cardialign(*words(shards, tmp_path / "out", coarse, chat.address))
        assert prose.code == 1 and "no JSON lists" in prose.json["problem"]
    down = cardialign(*words(shards, tmp_path / "out", coarse, "http://127.0.0.1:9/v1", "--retries", 0))
    assert down.code == 1 and "does not answer" in down.json["problem"] and "are kept" in down.json["remedy"]
    with chat_server(lambda report, before: Reply("[]")) as chat:
        spent = cardialign(*words(shards, tmp_path / "out", coarse, chat.address, "--budget-tokens", 2000))
        assert spent.code == 1 and "budget of 2000 tokens" in spent.json["problem"]
    nobody = cardialign(*words(shards, tmp_path / "out", coarse, "http://127.0.0.1:9/v1", "--answered-only"))
    assert nobody.code == 1 and "no report can be completed" in nobody.json["problem"]
    assert "--model" in nobody.json["remedy"]
    nameless = cardialign(*words(shards, tmp_path / "out", coarse, "http://127.0.0.1:9/v1", "--model", ""))
    assert nameless.code == 2 and "names no model" in nameless.json["problem"]
    assert not (tmp_path / "out").exists()


def test_the_stand_in_says_what_it_is(tmp_path: Path) -> None:
    import threading
    import urllib.request

    with StubServer("127.0.0.1", 0) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        with urllib.request.urlopen(f"{server.address}/models", timeout=5) as answer:
            assert json.load(answer)["data"][0]["id"] == MODEL == "cardialign-rules"
        with pytest.raises(urllib.error.HTTPError, match="400"):
            urllib.request.urlopen(f"{server.address}/chat/completions", b"nonsense", timeout=5)
        server.shutdown()


@pytest.mark.slow
@pytest.mark.processes
def test_the_stand_in_serves_until_it_is_asked_to_end() -> None:
    import subprocess
    import sys

    words = [sys.executable, "-m", "cardialign", "text", "stub", "--port", "0"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("rules, no language model: --endpoint http://127.0.0.1:")
        answer = Endpoint(line.split()[5], MODEL).ask(messages("Atrial fibrillation."))
        assert json.loads(answer.content) == ["P waves absent", "Irregular RR intervals"]
        process.terminate()
        assert process.wait(20) == 0
