"""The other methods, as the README runs them, and what is asked of their encoders."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.readme import block_with, run

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

SETS = """
cardialign cohort work/patients --patients 40 --seed 0 --sampling-rate 100
cardialign cohort work/unseen --patients 30 --seed 1 --sampling-rate 100
for name in patients:shards unseen:unseen-shards; do
  root=work/${name%%:*}
  cardialign shards build mimic-iv-ecg --root $root --labels $root/truth.csv --sampling-rate 100 --out work/${name##*:}
done
"""


def test_every_method_trains_and_scores_and_what_is_missing_is_asked(tmp_path: Path, shell: dict[str, str]) -> None:
    run(SETS, tmp_path, shell)
    printed = run(block_with("for recipe in"), tmp_path, shell)
    for name in ("merl", "melp", "d-beta", "fg-clep", "scar"):
        assert (tmp_path / "work" / name / "export" / "model.safetensors").is_file()
    assert printed.count("macro") >= 5 and "coverage" in printed
    assert list((tmp_path / "work" / "removed").glob("*.png"))
