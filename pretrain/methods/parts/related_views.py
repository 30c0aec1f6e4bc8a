"""Views of one record find each other among those of all records, and so do views of two records of one patient
(CLOCS, Kiyasseh, Zhu & Clifton 2021).
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from cardialign.pretrain.methods.parts.gathering import gathered
from cardialign.pretrain.methods.parts.row_losses import mean_over_batch


def related_views(
    views: Tensor, there: Tensor, patient: Tensor, temperature: float, group: dist.ProcessGroup | None = None
) -> tuple[dict[str, Tensor], float]:
    """Mean of -log s_ik over all pairs of different views of the global batch, by kind, 0-dim: same_record i = k,
    same_patient the others of one patient (0 where there is nothing of a kind). And what they are together to who sees
    nothing.

    views (b, V, d) unit vectors of this rank's records; there bool (b, V), which of them there are; patient int64 (b,).
    s_ik = e^{h_iA . h_kB / temperature} / sum_j e^{h_iA . h_jB / temperature}, over all records j that have view B.
    """
    others, first = gathered(views, group)
    present = gathered(there.long(), group)[0].bool()  # (B, V)
    related = patient[:, None] == gathered(patient, group)[0]  # (b, B)
    rows, number = torch.arange(len(present), device=views.device), torch.arange(views.shape[1], device=views.device)
    own = rows == rows[first : first + len(views), None]
    kinds = {"same_record": own, "same_patient": related & ~own}
    ln = present.sum(dim=0).clamp_min(1).log()  # (V,), what finding one costs who sees nothing
    sums: dict[str, list[Tensor]] = {name: [] for name in kinds}
    for a in range(views.shape[1]):
        logits = torch.einsum("bd,kvd->bkv", views[:, a], others) / temperature  # (b, B, V)
        logits = logits.masked_fill(~present, torch.finfo(logits.dtype).min)
        errors = logits.logsumexp(dim=1, keepdim=True) - logits
        wanted = present & there[:, a, None, None] & (number != a)
        for name, pairs in kinds.items():
            asked = wanted & pairs[..., None]
            found = torch.where(asked, errors, 0.0).sum(dim=(1, 2))
            counts = [asked.sum(dim=(1, 2)), (asked * ln).sum(dim=(1, 2))]
            sums[name].append(torch.stack([found, *(count.to(found) for count in counts)], dim=1))
    of_rows = {name: torch.stack(each).sum(dim=0) for name, each in sums.items()}
    means = {name: mean_over_batch(each[:, :2], group) for name, each in of_rows.items()}
    blind = [float(mean_over_batch(each[:, [2, 1]].detach(), group)) for each in of_rows.values()]
    return means, sum(blind)
