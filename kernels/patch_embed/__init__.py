"""Multi-scale patch embedding of lead groups, and the geometry of its tokens."""

from cardialign.kernels.patch_embed.embed import multi_scale_patch_embed
from cardialign.kernels.patch_embed.geometry import PatchScaleParams, token_count, token_seconds, token_valid
from cardialign.kernels.patch_embed.reference import patch_embed_reference

__all__ = [
    "PatchScaleParams",
    "multi_scale_patch_embed",
    "patch_embed_reference",
    "token_count",
    "token_seconds",
    "token_valid",
]
