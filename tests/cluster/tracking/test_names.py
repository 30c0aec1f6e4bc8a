"""Our judge of names says what MLflow says, and keys made from words of others are taken by it, each its own."""

from __future__ import annotations

import itertools

import pytest

from cardialign.cluster.tracking.names import check_alias, check_experiment, safe, safe_key
from cardialign.cluster.tracking.state import flatten
from cardialign.data_shards.errors import UsageError
from cardialign.data_shards.shown import shown

PLAIN = ["loss", "grad_norm", "system/cpu_percent", "group_weights/inferior", "1AVB", "a b", "a-b.c", "Vorhofflimmern"]


def refused(check: object, word: str) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        check(word)  # type: ignore[operator]
    except (UsageError, MlflowException):
        return True
    return False


def test_plain_words_stay_as_they_are() -> None:
    assert [safe_key(word) for word in PLAIN] == PLAIN


def test_every_word_of_awkward_pieces_gives_a_key_of_its_own_that_mlflow_takes() -> None:
    from mlflow.utils.validation import _validate_metric_name, _validate_param_name, _validate_tag_name

    pieces = ["", ".", "..", "/", "-x", "-", "x28", "x", "(", "28-", "_", " ", "\n", "é", "\U0001f600", "\ud800"]
    pieces += ["xh", "-xab", "\xab", "x2f-", "xl", "2d"]
    words = {"".join(parts) for parts in itertools.product(pieces, repeat=3)} | {"x" * 400, "x" * 399 + "y", "/" * 300}
    written = {safe(word) for word in words}
    assert len(written) == len(words)
    for key in written:
        assert len(key) <= 250
        _validate_metric_name(key)
        _validate_param_name(key)
        _validate_tag_name(f"resumed_with.{key}")


@pytest.mark.parametrize(
    "word", ["latest", "LATEST", "v1", "V2", "", " ", "a b", "a/b", "a.b", "x" * 256, "x" * 255, "3", "ü"]
)
def test_aliases_are_judged_as_mlflow_judges_them(word: str) -> None:
    from mlflow.utils.validation import _validate_model_alias_name, _validate_model_alias_name_reserved

    theirs = refused(_validate_model_alias_name, word) or refused(_validate_model_alias_name_reserved, word)
    assert refused(check_alias, word) == theirs


@pytest.mark.parametrize("name", ["", " ", "a ", "x" * 251, "a\nb", "\x1b[2J", ".."])
def test_experiments_that_cannot_be_are_refused_in_a_sentence(name: str) -> None:
    with pytest.raises(UsageError, match="cannot be the name of an MLflow experiment") as caught:
        check_experiment(name)
    assert caught.value.problem.isprintable() and len(caught.value.problem) < 150


def test_names_of_lead_groups_become_parameters_that_mlflow_takes() -> None:
    from mlflow.utils.validation import _validate_param_name

    flat = flatten(
        {"encoder": {"lead_groups": {"left (lateral)": ["I"], "inferior + right": [], "a.b": [], "a": {"b": 1}}}}
    )
    assert len(flat) == 4 and all(key.startswith("encoder.lead_groups.") for key in flat)
    for key in flat:
        _validate_param_name(key)


def test_words_of_a_server_cannot_act_on_a_terminal() -> None:
    assert shown("a\x1b]0;owned\x07\u202eé") == "a\\x1b]0;owned\\x07\\u202eé"
