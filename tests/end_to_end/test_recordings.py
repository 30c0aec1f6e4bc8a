"""The site's path on real recordings, on virtual ones in the layout of PTB-XL."""

from __future__ import annotations

from pathlib import Path

import pytest

from cardialign.data_shards.cohort.generate import Cohort, make_cohort
from tests.support.readme import RECORDINGS, block_with, run

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.deployment, pytest.mark.timeout(700)]


def test_the_path_on_recordings_in_the_layout_of_ptb_xl(tmp_path: Path, shell: dict[str, str]) -> None:
    recordings = make_cohort(tmp_path / "ptb-xl", Cohort(patients=60, layout="ptb-xl", seed=5)).path
    printed = run(block_with('"$PTB_XL"', page=RECORDINGS), tmp_path, {**shell, "PTB_XL": str(recordings)})
    assert "zero-shot, ptb-xl-super-v2" in printed
