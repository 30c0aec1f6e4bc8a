"""Attention over timed tokens: dense and packed, rotary positions in seconds, pooling."""

from cardialign.kernels.attention.dense import attention, attention_pool
from cardialign.kernels.attention.packed import BucketPlan, Packed, pack, packed_attention, plan_buckets, unpack
from cardialign.kernels.attention.rotary import Rotation, rotation, turn_heads
from cardialign.kernels.attention.weighted import weigh_keys

__all__ = [
    "BucketPlan",
    "Packed",
    "Rotation",
    "attention",
    "attention_pool",
    "pack",
    "packed_attention",
    "plan_buckets",
    "rotation",
    "turn_heads",
    "unpack",
    "weigh_keys",
]
