"""What a recipe may name: one row per method and per encoder.

The table imports nothing; a class is imported when it is asked for.

A package of a user's own adds to both by entry points (`data_shards.plugins`); the entry point's name is the name in
the recipe.
"""

from __future__ import annotations

from cardialign.data_shards.plugins import Table

METHODS = Table(
    "method",
    {
        "cardialign": "cardialign.pretrain.methods.cardialign:CardiAlign",
        "siglip": "cardialign.pretrain.methods.siglip:SigLip",
        "simclr": "cardialign.pretrain.methods.simclr:SimClr",
        "st_mem": "cardialign.pretrain.methods.st_mem:StMem",
    },
)
"""`method.name` -> the class, a `pretrain.methods.base.Method`."""

ENCODERS = Table(
    "encoder",
    {
        "cardialign": "cardialign.pretrain.encoders.cardialign:CardiAlignEncoder",
        "resnet1d": "cardialign.pretrain.encoders.resnet1d:ResNet1d",
        "vit1d": "cardialign.pretrain.encoders.vit1d:Vit1d",
    },
)
"""`encoder.name` -> the class, a `pretrain.encoders.base.EcgEncoder`."""
