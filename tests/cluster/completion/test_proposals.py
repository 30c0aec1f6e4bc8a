"""Pairs of records and features, strangers, and the threshold that they set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cardialign.cluster.completion.answers import AnswerStore
from cardialign.cluster.completion.endpoint import ChatAnswer
from cardialign.cluster.completion.guard import CLASS_NAME, DIAGNOSIS, SAID, LeakGuard
from cardialign.cluster.completion.proposals import Proposals, own_thresholds, pairs_of, propose, strangers


def test_answers_become_numbered_features_and_the_guard_says_what_it_dropped(tmp_path: Path) -> None:
    said = {
        "A.": '["Tall T", "Low P", "a"]',
        "Old infarct.": '["low p", "Infarct of the past", "Long QT interval"]',
        "C.": "prose",
    }
    with AnswerStore.opened(tmp_path, "m") as store:
        for text, content in said.items():
            store.add(text, ChatAnswer(content, 1, 1, True))
        guard = LeakGuard(["long QT interval"])
        statements = [("A",), ("Old infarct",), ("C",), ("D",)]
        found = propose([5, 7, 8, 9], statements, [*said, "D."], store, guard)
    assert found.features == ["Tall T", "Low P"] and found.of_report == {5: [0, 1], 7: [1]}
    assert (found.lists, found.prose, found.unanswered) == (2, 1, 1)
    assert found.dropped == {
        ("a", SAID): 1,
        ("Infarct of the past", DIAGNOSIS): 1,
        ("Long QT interval", CLASS_NAME): 1,
    }


def test_a_pair_for_every_record_of_a_report_and_every_feature_of_its_answer() -> None:
    found = Proposals(features=["a", "b", "c"], of_report={2: [1, 0], 4: [2]})
    rows, report = np.array([10, 11, 12, 20]), np.array([2, 3, 4, 2])
    pairs = pairs_of(found, rows, report)
    assert list(zip(pairs.rows.tolist(), pairs.feature.tolist(), strict=True)) == [
        (10, 1), (10, 0), (12, 2), (20, 1), (20, 0),
    ]  # fmt: skip
    nothing = pairs_of(Proposals(), rows, report)
    assert nothing.rows.size == nothing.feature.size == 0


def test_strangers_are_records_for_which_the_feature_was_not_proposed() -> None:
    found = Proposals(features=["a", "b", "c"], of_report={2: [1, 0], 4: [2]})
    rows, report = np.array([10, 11, 12, 20]), np.array([2, 3, 4, 2])
    others = strangers(rows, report, found, seed=0)
    assert set(zip(others.feature.tolist(), others.rows.tolist(), strict=True)) == {
        (0, 11), (0, 12), (1, 11), (1, 12), (2, 10), (2, 11), (2, 20),
    }  # fmt: skip
    assert (np.diff(others.feature) >= 0).all()


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5])
def test_of_the_strangers_of_each_feature_no_more_than_the_share_exceed_its_threshold(share: float) -> None:
    rng = np.random.default_rng(0)
    of = np.repeat([0, 1, 3], [200, 120, 49])
    strange = rng.random(of.size) * np.array([0.1, 1.0, 0.0, 0.5])[of]
    least = own_thresholds(strange, of, 5, share)
    for feature in (0, 1):
        own = strange[of == feature]
        above = int((own > least[feature]).sum())
        assert above == int(share * own.size)
    assert least[2] == least[3] == least[4] == 1.0, "too few of them, or none"
