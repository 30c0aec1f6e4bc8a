"""The tutorial's path on a cluster, on a Ray head node that the test starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from cardialign.data_shards.cohort.generate import Cohort, make_cohort
from tests.support.ray_cluster import ray_head
from tests.support.readme import TUTORIAL, block_with, run

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(700)]


def test_the_path_on_a_cluster(tmp_path: Path, shell: dict[str, str]) -> None:
    recordings = make_cohort(tmp_path / "mimic", Cohort(patients=40, layout="mimic-iv-ecg", seed=6)).path
    settings = {
        "MIMIC": str(recordings),
        "SHARED": str(tmp_path),
        "TEXT_ENCODER": "minilm",
        "RECIPE": "cardialign-demo",
        "WORKERS": "2",
        "TRACKING_URI": f"sqlite:///{tmp_path / 'mlflow.db'}",
        "RAY_AUTH_MODE": "disabled",
    }
    environment = {**shell, **settings}
    with ray_head(tmp_path, environment) as address:
        run(block_with('"$MIMIC"', page=TUTORIAL), tmp_path, {**environment, "RAY_ADDRESS": address})
    assert (tmp_path / "run-1" / "export" / "model.safetensors").is_file()
