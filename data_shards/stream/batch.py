"""One rank's share of a global batch, as the stream hands it out."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from cardialign.data_shards.order.substitutes import BadSample


def _no_wait() -> dict[str, float]:
    return {"read": 0.0, "decode": 0.0, "queue": 0.0}


@dataclass
class Batch:
    """One rank's share of a global batch.

    b records of this rank, B of all ranks, T samples. Row arrays are aligned:
    rows int64 (b,); signal float32 (b, 12, T) in mV; lead_mask bool (b, 12); valid_samples int32 (b,);
    report int64 (b,), -1 none; age_years float32 (b,), NaN unknown; sex int8 (b,), 0 unknown 1 female 2 male.

    global_rows    int64 (B,), the rows of all ranks.
    global_report  int64 (B,), their reports, where the training loop has filled it in.
    patient        int64 (b,), whose record each is, where the training loop has filled it in: a number per patient of
                   the set or the mixture, and one of its own for a record without a known patient. No identifier.
    wait           seconds spent on this batch: read and decode in the background, queue = how long the consumer stood.
    slowest        (seconds, shard) of its slowest read.
    shards         shard -> (seconds, reads) of this batch.
    bad            records that could not be read, whose signal is zero until they are substituted.
    """

    step: int
    rows: np.ndarray
    signal: np.ndarray
    lead_mask: np.ndarray
    valid_samples: np.ndarray
    report: np.ndarray
    age_years: np.ndarray
    sex: np.ndarray
    global_rows: np.ndarray
    wait: dict[str, float] = field(default_factory=_no_wait)
    slowest: tuple[float, str] = (0.0, "")
    shards: dict[str, tuple[float, int]] = field(default_factory=dict)
    bad: list[BadSample] = field(default_factory=list)
    global_report: np.ndarray | None = None
    patient: np.ndarray | None = None
