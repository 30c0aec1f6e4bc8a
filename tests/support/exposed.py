"""A very small encoder with an exposure certificate."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from cardialign.data_shards.secret import Secret
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.pretrain.export.exposure.salt import CertificateSalt
from cardialign.pretrain.export.trained_on import Records, TrainedOn, chosen, trained_set
from cardialign.pretrain.export.write import export_encoder
from tests.support.small_encoder import SPEC, small_model

SALT = "a-salt-of-the-tests-alone"


def exposed(opened: ShardSet, out: Path, rows: list[int], more: TrainedOn | None = None) -> Path:
    """Trained, as its certificate says, on these rows, and on what else is given."""
    config, model = small_model()
    given = np.array(rows)
    own = replace(trained_set(opened, given, chosen(None, None)), records=Records(opened, given, False))
    return export_encoder(
        config,
        model.state_dict(),
        out,
        training={"steps": 3, "digest": "0" * 32},
        spec=SPEC,
        program=False,
        trained_on=TrainedOn((own,)) + (more or TrainedOn()),
        salt=CertificateSalt(Secret(SALT)),
    )
