"""Contrastive losses over the global batch, and what they are given."""

from cardialign.kernels.contrastive.execution import Execution
from cardialign.kernels.contrastive.losses import (
    ContrastiveOutput,
    ets,
    false_negative_mitigation,
    infonce,
    siglip,
    soft_target_infonce,
    weighted_infonce,
)
from cardialign.kernels.contrastive.similarity import NegativeWeights, Similarity
from cardialign.kernels.contrastive.soft_targets import SoftTargets

__all__ = [
    "ContrastiveOutput",
    "Execution",
    "NegativeWeights",
    "Similarity",
    "SoftTargets",
    "ets",
    "false_negative_mitigation",
    "infonce",
    "siglip",
    "soft_target_infonce",
    "weighted_infonce",
]
