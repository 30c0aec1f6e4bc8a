"""Surfaces of a study by arithmetic: seeds, draws and folds are means, and what is lost is paired."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from cardialign.cluster.studies import missing
from cardialign.cluster.studies.design import load_design
from cardialign.cluster.studies.missing import PRESETS, RANDOM, missing_lines, missing_table
from cardialign.data_shards.errors import UsageError
from cardialign.pretrain.evaluation.missingness.surface.measure import SurfacePlan

N = 20
TRUTH = (np.arange(N) % 2 == 0)[:, None]
RIGHT, WRONG, NOTHING = 1.0 * TRUTH, -1.0 * TRUTH, 0.0 * TRUTH
"""AUROC 1, 0 and one half."""
PLAN = SurfacePlan((0, 11), (0.0, 0.75), draws=3)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(missing, "plan_of_study", lambda: PLAN)


def cell(grid: dict[int, np.ndarray], presets: list[np.ndarray], patients: str = "p") -> SimpleNamespace:
    """grid: place of (leads, time, draw) -> scores; all others are right."""
    count = len(PLAN.leads) * len(PLAN.time) * PLAN.draws
    scores = np.stack([grid.get(k, RIGHT) for k in range(count)])
    who = np.array([f"{patients}{k}" for k in range(N)])
    both = (RANDOM, PRESETS)
    return SimpleNamespace(
        scores={RANDOM: scores, PRESETS: np.stack(presets)},
        truth=dict.fromkeys(both, TRUTH),
        patients=dict.fromkeys(both, who),
        codes={key: ["C"] for key in both},
        decided={},
    )


def test_seeds_draws_and_folds_are_means_and_the_reference_is_ahead_by_the_difference() -> None:
    right = [RIGHT] * 4
    last = 3 * 3  # of 11 leads, 75 %: the first draw
    ours = {1: [cell({}, right), cell({}, right)], 2: [cell({}, right, "q"), cell({}, right, "q")]}
    theirs = {
        1: [cell({last: WRONG}, [RIGHT, NOTHING, WRONG, RIGHT]), cell({}, right)],
        2: [cell({}, right, "q"), cell({}, right, "q")],
    }
    table = missing_table(["a", "b"], "a", {"a": ours, "b": theirs}, 10)
    a, b = table["rows"]
    assert {each["auroc"]["value"] for each in (*a["cells"], *a["presets"])} == {1.0}
    # one wrong draw of three, in one seed of two, on one fold of two
    assert b["cells"][-1]["auroc"]["value"] == pytest.approx(1 - 1 / (3 * 2 * 2))
    assert (b["cells"][-1]["leads"], b["cells"][-1]["time"]) == (11, 0.75)
    assert b["cells"][-1]["lost"]["value"] == pytest.approx(1 / 12)
    assert b["cells"][-1]["reference_ahead"]["value"] == pytest.approx(1 / 12)
    assert [each["lost"]["value"] for each in b["presets"]] == pytest.approx([0, 0.5 / 4, 1 / 4, 0])
    assert sum(each["lost"]["value"] for each in b["cells"][:-1]) == 0
    told = missing_lines(table)
    assert sum(line.startswith("| b |") for line in told) == 2
    assert any("0.750, -25.0" in line for line in told) and any("0.917, -8.3" in line for line in told)


def test_a_study_says_with_true_or_false_whether_it_asks_for_missingness(tmp_path) -> None:
    assert load_design("missingness").missingness and not load_design("parts").missingness
    text = "{name: n, recipe: r, reference: a, variants: {a: {words: w, set: {}}}, missingness: 3}"
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(UsageError, match="missingness is true or false"):
        load_design(tmp_path / "s.yaml")
