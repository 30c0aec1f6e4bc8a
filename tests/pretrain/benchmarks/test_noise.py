"""A bank of noise is a bank: a report is the same whenever a method asks for it."""

from __future__ import annotations

import numpy as np
import pytest

from cardialign.pretrain.benchmarks.noise import NoiseBank
from cardialign.pretrain.config import load_config


@pytest.mark.parametrize(
    "part", ["embedding", "tokens", "similarity_features", "statement_sets", "report_keys", "statement_vectors"]
)
def test_a_report_is_the_same_whenever_it_is_asked_for(part: str) -> None:
    bank, ids = NoiseBank(load_config("cardialign-demo"), 12), np.array([3, 0, 11, 3])
    ask = getattr(bank, part)
    first, again = (ask() if part == "statement_vectors" else ask(ids) for _ in range(2))
    for one, other in zip(first, again, strict=True):
        assert np.array_equal(one, other)


def test_the_reports_of_a_whole_bank_are_those_of_its_batches() -> None:
    """A method that learns of all reports, as MELP the words and the most sentences of one, meets no others later."""
    bank = NoiseBank(load_config("cardialign-demo"), 12)
    whole, lengths = bank.tokens(np.arange(12))
    some, _ = bank.tokens(np.array([7, 2]))
    assert np.array_equal(some, whole[[7, 2]]) and (lengths == whole.shape[1]).all()
    starts, statements = bank.statement_sets(np.arange(12))
    _, two = bank.statement_sets(np.array([7, 2]))
    assert np.array_equal(two, np.concatenate([statements[starts[i] : starts[i + 1]] for i in (7, 2)]))
    assert len(np.unique(whole, axis=0)) == 12
