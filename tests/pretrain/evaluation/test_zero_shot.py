"""Zero-shot figures are those of the plain definition, on labelled records only.

A trained encoder beats its untrained twin by an honest margin.
"""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from sklearn.metrics import roc_auc_score

from cardialign.data_shards.errors import DataError, UsageError, UserError
from cardialign.data_shards.files import sha256_of
from cardialign.data_shards.record import SignalSpec
from cardialign.data_shards.shard_set.index import IndexFile
from cardialign.data_shards.shard_set.layout import INDEX
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.pretrain.evaluation.prompts import load_prompts
from cardialign.pretrain.evaluation.scoring import auroc
from cardialign.pretrain.evaluation.task import labelled_task
from cardialign.pretrain.evaluation.zero_shot import (
    class_embeddings,
    class_words,
    compare_zero_shot,
    evaluate_zero_shot,
)
from cardialign.pretrain.export.loaded import untrained_encoder
from tests.support.small_encoder import SPEC, small_config


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """These models are so small that threads only wait for each other, most of all on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def untrained():
    return untrained_encoder(small_config(), SPEC, seed=0)


@pytest.fixture(scope="module")
def trained(shards):
    """The untrained encoder after a few seconds of plain contrastive training on fold 1 (no labels)."""
    encoder = untrained_encoder(small_config(), SPEC, seed=0)
    rows = shards.select(folds=[1]).rows
    records = [shards.read_record(row) for row in rows]
    signal = torch.from_numpy(np.stack([r.millivolts() for r in records]))
    texts = [". ".join(r.statements) for r in records]
    distinct = sorted(set(texts))
    pooled = torch.from_numpy(encoder.text_encoder.embed(distinct))
    report = torch.tensor([distinct.index(t) for t in texts])
    encoder.ecg.requires_grad_(True).train()
    encoder.head.requires_grad_(True).train()
    optimizer = torch.optim.AdamW([*encoder.ecg.parameters(), *encoder.head.parameters()], lr=5e-3)
    mask = torch.ones(len(rows), 12, dtype=torch.bool)
    for _ in range(80):
        logits = encoder.ecg(signal, mask).embedding @ encoder.head(pooled).T / 0.1
        loss = torch.nn.functional.cross_entropy(logits, report)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    encoder.ecg.requires_grad_(False).eval()
    encoder.head.requires_grad_(False).eval()
    return encoder


def test_the_figures_are_those_of_the_plain_definition_on_labelled_records_only(shards, prompts, untrained):
    result = evaluate_zero_shot(untrained, shards, prompts=prompts, bootstrap=50, batch_size=7)
    records = [r for r in (shards.read_record(row) for row in range(len(shards))) if "finding" in r.labels]
    ecg = untrained.embed(np.stack([r.millivolts() for r in records]), sampling_rate=100)
    words = {
        "UP": ["Tall upright deflections", "Upright deflections"],
        "DOWN": ["Deep inverted deflections"],
        "FAST": ["Very rapid rhythm", "Rapid rhythm"],
    }
    assert result.n == len(records) == 120 - 17
    assert result.patients == len({r.patient for r in records})
    for entry in result.classes:
        text = untrained.embed_text(words[entry.code]).mean(axis=0)
        truth = np.array([entry.code in r.labels["finding"] for r in records])
        assert entry.auroc == pytest.approx(auroc(ecg @ text, truth)[0], abs=2e-3)
        assert entry.positives == truth.sum()
        assert entry.low <= entry.auroc <= entry.high
    assert result.macro == pytest.approx(np.mean([c.auroc for c in result.classes]))


def test_a_class_without_positives_is_left_out_and_said_so(shards, prompts, untrained):
    result = evaluate_zero_shot(untrained, shards, prompts=prompts, bootstrap=10)
    assert [c.code for c in result.classes] == ["UP", "DOWN", "FAST"]
    assert result.excluded == [
        {"code": "RARE", "name": "Rare thing", "reason": "no record of the shard set has such a code of finding"}
    ]


def test_a_class_of_a_few_patients_has_a_figure_but_no_interval(shards, prompts, untrained, tmp_path):
    keep = [row for row in range(14) if row % 7 != 6]
    records = [shards.read_record(row) for row in keep]
    patients_up = len({r.patient for r in records if "UP" in r.labels["finding"]})
    pq.write_table(shards.index.slice(0, 14), tmp_path / INDEX)
    few = ShardSet(shards.path, shards.manifest, IndexFile(tmp_path / INDEX, sha256_of(tmp_path / INDEX)))
    result = evaluate_zero_shot(untrained, few, prompts=prompts, bootstrap=50)
    up = next(c for c in result.classes if c.code == "UP")
    assert up.positive_patients == patients_up < 5
    assert 0 <= up.auroc <= 1 and np.isnan(up.low) and np.isnan(up.high)
    assert result.to_dict()["classes"][0]["low"] is None
    (why,) = (line for line in result.table().splitlines() if line.startswith("no interval, fewer than 5 patients"))
    assert "n/a" in result.table() and "UP" in why
    assert all((c.code in why.split(": ")[1].split(", ")) == np.isnan(c.low) for c in result.classes)


def test_training_beats_the_untrained_twin_on_unseen_patients_with_an_interval_that_excludes_nothing(
    shards, prompts, trained
):
    comparison = compare_zero_shot(trained, trained.untrained(), shards, prompts=prompts, folds=[2], bootstrap=200)
    assert comparison.result.macro > 0.85
    assert comparison.result.low > 0.5
    assert 0 < comparison.difference.low < comparison.difference.value < comparison.difference.high
    assert comparison.difference.value == pytest.approx(comparison.result.macro - comparison.baseline.macro)
    assert set(comparison.differences) == {"UP", "DOWN", "FAST"}


def test_an_encoder_compared_with_itself_differs_by_exactly_nothing(shards, prompts, trained):
    comparison = compare_zero_shot(trained, trained, shards, prompts=prompts, bootstrap=50)
    assert (comparison.difference.value, comparison.difference.low, comparison.difference.high) == (0, 0, 0)
    assert comparison.result.classes == comparison.baseline.classes


def test_the_same_call_gives_the_same_figures_whatever_the_batch_size(shards, prompts, untrained):
    one, two = (
        evaluate_zero_shot(untrained, shards, prompts=prompts, bootstrap=20, batch_size=b, threads=t)
        for b, t in ((5, 1), (64, 2))
    )
    assert [c.auroc for c in one.classes] == pytest.approx([c.auroc for c in two.classes], abs=2e-3)
    assert evaluate_zero_shot(untrained, shards, prompts=prompts, bootstrap=20).classes == two.classes


@pytest.mark.parametrize("few", [0, 1])
def test_without_resamples_there_are_figures_and_no_intervals(shards, prompts, untrained, few):
    told = compare_zero_shot(untrained, untrained.untrained(1), shards, prompts=prompts, bootstrap=few)
    full = evaluate_zero_shot(untrained, shards, prompts=prompts, bootstrap=20)
    assert [each.auroc for each in told.result.classes] == [each.auroc for each in full.classes]
    assert all(np.isnan([each.low, each.high]).all() for each in told.result.classes)
    values = json.loads(json.dumps(told.to_dict(), allow_nan=False))
    assert values["macro"] == full.to_dict()["macro"] and values["low"] is None
    assert told.table().endswith("(n/a)") and "nan" not in told.table() and "no interval" not in told.table()


def test_the_result_is_json_with_everything_to_make_it_again_and_a_readable_table(shards, prompts, untrained):
    comparison = compare_zero_shot(
        untrained, untrained.untrained(1), shards, prompts=prompts, folds=[1], bootstrap=20, seed=5
    )
    values = json.loads(json.dumps(comparison.to_dict(), allow_nan=False))
    assert values["shards"] == shards.fingerprint and values["encoder"] == "untrained-seed-0" and values["folds"] == [1]
    assert values["bootstrap"] == {
        "resamples": 20,
        "seed": 5,
        "unit": "patient",
        "weights": "exponential: every resample holds every class of the macro",
        "level": 0.95,
    }
    assert values["prompts"]["name"] == "planted-v1" and len(values["prompts"]["digest"]) == 64
    assert values["baseline"]["encoder"] == "untrained-seed-1"
    table = comparison.table()
    for words in (
        "Upright",
        f"{comparison.result.macro:.3f}",
        f"{comparison.baseline.macro:.3f}",
        "left out, no record of the shard set has such a code of finding: RARE",
        "paired",
    ):
        assert words in table


def test_a_task_chosen_elsewhere_is_scored_as_it_is_and_named_in_the_result(shards, prompts, untrained):
    chosen = labelled_task(shards, prompts, folds=[2], split="train")
    assert 0 < len(chosen.rows) < len(labelled_task(shards, prompts, folds=[2]).rows)
    about = {
        "protocol": "planted-v1",
        "task": "all",
        "note": "3 of 4 test records are in this shard set",
        "deviations": ["no real heart"],
    }
    result = evaluate_zero_shot(untrained, shards, task=dataclasses.replace(chosen, protocol=about), bootstrap=10)
    same = evaluate_zero_shot(untrained, shards, prompts=prompts, folds=[2], split="train", bootstrap=10)
    assert same.to_dict()["split"] == {"split": "train", "salt": "cardialign-split-1", "fractions": [0.8, 0.1, 0.1]}
    assert result.classes == same.classes and result.n == same.n == len(chosen.rows) and result.folds == [2]
    assert result.to_dict()["protocol"] == about and same.to_dict()["protocol"] is None
    assert (
        "protocol planted-v1:all: 3 of 4 test records" in result.table() and "differs: no real heart" in result.table()
    )
    with pytest.raises(UsageError, match="neither prompts nor a protocol"):
        evaluate_zero_shot(untrained, shards)


def test_a_task_may_show_only_the_first_seconds(shards, prompts, untrained):
    task = dataclasses.replace(labelled_task(shards, prompts, folds=[1]), first_seconds=1.0)
    result = evaluate_zero_shot(untrained, shards, task=task, bootstrap=5)
    records = [shards.read_record(row) for row in task.rows]
    signal = np.stack([r.millivolts() for r in records])
    signal[..., 100:] = 7.0  # what is masked must not matter
    ecg = untrained.encode(
        signal, np.ones((len(records), 12), dtype=bool), np.full(len(records), 100)
    ).embedding.numpy()
    words = class_embeddings(untrained, task.prompts)
    for entry in result.classes:
        k = task.prompts.codes.index(entry.code)
        assert entry.auroc == pytest.approx(auroc(ecg @ words[k], task.truth[:, k])[0], abs=2e-3)
    assert result.classes != evaluate_zero_shot(untrained, shards, prompts=prompts, folds=[1], bootstrap=5).classes


def test_progress_counts_every_record_once(shards, prompts, untrained):
    seen = []
    result = evaluate_zero_shot(
        untrained,
        shards,
        prompts=prompts,
        bootstrap=5,
        batch_size=40,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(40, 103), (80, 103), (103, 103)] and result.n == 103


def test_prompt_ensembles_are_means_of_unit_vectors(prompts, untrained):
    embedded = class_embeddings(untrained, load_prompts(prompts))
    both = untrained.embed_text(["Tall upright deflections", "Upright deflections"]).mean(axis=0)
    np.testing.assert_allclose(embedded[0], both / np.linalg.norm(both), atol=1e-6)


def test_what_both_sides_of_a_pair_share_falls_out(prompts, untrained):
    words = load_prompts(prompts)
    pair = dataclasses.replace(words.classes[1], against=("Very rapid rhythm",))
    found = class_embeddings(untrained, dataclasses.replace(words, classes=(pair, words.classes[2])))
    down, fast = untrained.embed_text(["Deep inverted deflections", "Very rapid rhythm"])
    np.testing.assert_allclose(found[0], (down - fast) / np.linalg.norm(down - fast), atol=1e-6)
    np.testing.assert_allclose(found[1], class_embeddings(untrained, words)[2], atol=1e-6)


def test_classes_that_the_text_encoder_cannot_tell_apart_get_no_figures(prompts, untrained, caplog):
    """What differs behind the last token that is read, or in words that it does not know, has one score, not two."""
    words = load_prompts(prompts)
    long = "sinus rhythm " * 400

    def asked(first, second, against=(), combine="mean"):
        pair = [dataclasses.replace(words.classes[k], prompts=(text,)) for k, text in enumerate((first, second))]
        pair[1] = dataclasses.replace(pair[1], against=against)
        return class_words(untrained, dataclasses.replace(words, classes=tuple(pair), combine=combine)).vectors

    for combine in ("mean", "max"):
        with pytest.raises(UserError, match="reads the same for the classes UP and DOWN"):
            asked(long + "atrial fibrillation", long + "atrial flutter", combine=combine)
    with pytest.raises(UserError, match="reads the same for the classes UP and DOWN"):
        asked("\U0001fac0", "\U0001fac1")
    with pytest.raises(UserError, match="of class DOWN the text encoder reads a prompt and a text of `against`"):
        asked("Atrial fibrillation", long + "flutter", (long + "fibrillation",))
    caplog.clear()
    up, down = asked("Atrial fibrillation", long + "atrial flutter")
    assert abs(up @ down) < 0.999
    assert "texts=1 of=2 remark=they fill all" in caplog.text and "is not read" in caplog.text


def test_of_prompts_combined_by_their_maximum_the_nearest_counts(shards, prompts, untrained, tmp_path):
    text = prompts.read_text()
    (tmp_path / "max.yaml").write_text(text.replace("version: 1", "version: 1\ncombine: max"))
    result = evaluate_zero_shot(untrained, shards, prompts=tmp_path / "max.yaml", bootstrap=2)
    rows = labelled_task(shards, prompts).rows
    records = [shards.read_record(int(row)) for row in rows]
    ecg = np.concatenate([untrained.embed(each.millivolts(), sampling_rate=100.0) for each in records])
    for code, found in zip(("UP", "DOWN", "FAST"), result.classes, strict=True):
        words = yaml.safe_load(text)["classes"][code]["prompts"]
        nearest = (ecg @ untrained.embed_text(words).T).max(axis=1)
        has = np.array([code in each.labels["finding"] for each in records])
        assert (found.code, found.auroc) == (code, pytest.approx(roc_auc_score(has, nearest), abs=1e-6))
    plain = evaluate_zero_shot(untrained, shards, prompts=prompts, bootstrap=2)
    ours, theirs = ([each.auroc for each in one.classes] for one in (result, plain))
    assert ours[1] == pytest.approx(theirs[1], abs=1e-6), "of one prompt the nearest is the mean"
    assert ours[0] != theirs[0] and ours[2] != theirs[2]
    assert result.prompts["digest"] != plain.prompts["digest"] and result.prompts["combine"] == "max"


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"prompts": "nonsense"}, UsageError, r"no prompt set 'nonsense'(.|\n)*virtual-findings-v1"),
        (
            {"prompts": "ptb-xl-super-v1"},
            UsageError,
            r"label set 'super', which(.|\n)*sets there: finding; words for one of your own",
        ),
        ({"prompts": "virtual-findings-v1"}, UsageError, r"no code of prompt set(.|\n)*codes there: DOWN, FAST, UP"),
        ({"classes": ["UP", "SIDEWAYS"]}, UsageError, r"no class SIDEWAYS(.|\n)*choose from: UP, DOWN, FAST, RARE"),
        ({"folds": [9]}, DataError, r"folds present: 1, 2"),
    ],
)
def test_wrong_words_are_answered_with_the_known_ones(shards, prompts, untrained, arguments, kind, message):
    with pytest.raises(kind, match=message):
        evaluate_zero_shot(untrained, shards, **{"prompts": prompts, **arguments})


def test_an_encoder_that_was_trained_without_reports_is_refused_before_anything_is_read(shards, prompts, monkeypatch):
    monkeypatch.setattr("cardialign.pretrain.evaluation.zero_shot.embed_set", None)
    encoder = untrained_encoder(small_config(), SPEC, with_reports=False)
    with pytest.raises(UserError, match="trained without reports") as caught:
        evaluate_zero_shot(encoder, shards, prompts=prompts)
    assert "use an encoder that was trained with reports" in caught.value.remedy


def test_shards_of_another_rate_are_refused(shards, prompts):
    other = untrained_encoder(small_config(), SignalSpec(200, 2))
    with pytest.raises(UserError, match=r"holds 2 s at 100 Hz, the encoder was trained on 2 s at 200 Hz"):
        evaluate_zero_shot(other, shards, prompts=prompts)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"folds": "10"}, "folds is '10'"),  # not folds 1 and 0
        ({"folds": 5}, "folds is 5"),
        ({"folds": [9.5]}, "not all of these are whole numbers"),
        ({"bootstrap": -1}, "bootstrap is -1"),
        ({"bootstrap": "x"}, "bootstrap is 'x'"),
        ({"seed": -1}, "seed is -1"),
        ({"batch_size": 1.5}, "batch_size is 1.5"),
        ({"prompts": 5}, "prompts is 5"),
        ({"classes": "AF"}, "classes is 'AF'"),
        ({"protocol": "clean-v2:csn"}, "no option 'protocol'"),
    ],
)
def test_an_option_that_cannot_be_meant_is_named(shards, prompts, untrained, wrong, told):
    with pytest.raises(UsageError, match=told):
        evaluate_zero_shot(untrained, shards, **{"prompts": prompts, **wrong})
