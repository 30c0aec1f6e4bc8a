"""Other methods, as the site runs them, and what is asked of their encoders.

One of its five recipes: each has its learning test, and all encoders are traced in `tests/pretrain/export`. Few
records: what is missing is looked for record by record.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.readme import OTHER_METHODS, block_with, run

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.deployment, pytest.mark.timeout(900)]

SETS = """
cardialign cohort work/patients --patients 40 --seed 0 --sampling-rate 100
cardialign cohort work/unseen --patients 30 --seed 1 --sampling-rate 100
for name in patients:shards unseen:unseen-shards; do
  root=work/${name%%:*}
  cardialign shards build mimic-iv-ecg --root $root --labels $root/truth.csv --sampling-rate 100 --out work/${name##*:}
done
"""


def test_a_method_trains_and_scores_and_what_is_missing_is_asked(tmp_path: Path, shell: dict[str, str]) -> None:
    run(SETS, tmp_path, shell)
    block = block_with("for recipe in", page=OTHER_METHODS)
    assert "merl melp d-beta fg-clep scar" in block and "--beside work/merl/export" in block
    block = block.replace("merl melp d-beta fg-clep scar", "scar").replace("--beside work/merl/export", "--records 8")
    printed = run(block, tmp_path, shell)
    assert (tmp_path / "work" / "scar" / "export" / "encoder.pt2").is_file()
    assert "macro" in printed and "coverage" in printed
    assert list((tmp_path / "work" / "removed").glob("*.png"))
