"""How much each lead group counts in the embedding of a record, for its 12-lead picture.

The weights are those of the encoder's attention between lead groups: they say where it looked, not why.
"""

from __future__ import annotations

import numpy as np

from cardialign.data_shards.errors import UserError
from cardialign.data_shards.record import EcgRecord, SignalSpec
from cardialign.data_shards.signal.plot import LeadWeight
from cardialign.pretrain.export.ages import aged
from cardialign.pretrain.export.usable import UsableEncoder


def lead_weights(encoder: UsableEncoder, record: EcgRecord, spec: SignalSpec) -> dict[str, LeadWeight]:
    """Lead -> group and weight, of a record of a shard set of `spec`; the weights of the groups sum to 1.

    Raises UserError for an encoder that weighs no lead groups, and for a record that does not fit its signal contract.
    """
    if not encoder.group_leads:
        raise UserError(
            f"encoder {encoder.digest[:24]} weighs no lead groups: there is nothing to draw",
            "leave --encoder out, or take an encoder of the kind `cardialign`",
        )
    read = aged(
        encoder.reader(spec), np.array([np.nan if record.age_years is None else record.age_years], dtype=np.float32)
    )
    output = read(record.millivolts()[None], record.lead_mask[None], np.array([record.valid_samples]))
    assert output.group_weights is not None, "an encoder with lead groups gives their weights"
    weights = output.group_weights[0].float().cpu().tolist()
    return {
        lead: LeadWeight(group, float(weight))
        for (group, leads), weight in zip(encoder.group_leads.items(), weights, strict=True)
        for lead in leads
    }
