"""What a recipe may name: one row per method and per encoder.

The table imports nothing; a class is imported when it is asked for.

A package of a user's own adds to both by entry points (`data_shards.plugins`); the entry point's name is the name in
the recipe.
"""

from __future__ import annotations

from typing import Any

from cardialign.data_shards.plugins import Check, Table, thing_at


def _inherits(base: str, config: str) -> Check:
    """A check that a plug-in is a subclass of `base`, and its `Config` one of `config`; both "module:Class".

    They are imported when a plug-in has been: the table itself imports nothing.
    """

    def check(thing: Any) -> str | None:
        if not isinstance(thing, type):
            return f"it is of type {type(thing).__name__}, not a class that inherits from {base}"
        if not issubclass(thing, thing_at(base)):
            return f"{thing.__name__} does not inherit from {base}"
        section = getattr(thing, "Config", None)
        if not isinstance(section, type) or not issubclass(section, thing_at(config)):
            return f"{thing.__name__}.Config does not inherit from {config}"
        return None

    return check


METHODS = Table(
    "method",
    {
        "astcl": "cardialign.pretrain.methods.astcl:Astcl",
        "barlow_twins": "cardialign.pretrain.methods.barlow_twins:BarlowTwins",
        "byol": "cardialign.pretrain.methods.byol:Byol",
        "cardialign": "cardialign.pretrain.methods.cardialign:CardiAlign",
        "clocs": "cardialign.pretrain.methods.clocs:Clocs",
        "cpc": "cardialign.pretrain.methods.cpc:Cpc",
        "crt": "cardialign.pretrain.methods.crt:Crt",
        "d_beta": "cardialign.pretrain.methods.d_beta.method:DBeta",
        "fg_clep": "cardialign.pretrain.methods.fg_clep:FgClep",
        "heartlang": "cardialign.pretrain.methods.heartlang.method:HeartLang",
        "heartlang_quantiser": "cardialign.pretrain.methods.heartlang.quantiser:HeartLangQuantiser",
        "jepa": "cardialign.pretrain.methods.jepa:Jepa",
        "melp": "cardialign.pretrain.methods.melp:Melp",
        "merl": "cardialign.pretrain.methods.merl:Merl",
        "moco_v3": "cardialign.pretrain.methods.moco_v3:MocoV3",
        "scar": "cardialign.pretrain.methods.scar.method:Scar",
        "siglip": "cardialign.pretrain.methods.siglip:SigLip",
        "simclr": "cardialign.pretrain.methods.simclr:SimClr",
        "simsiam": "cardialign.pretrain.methods.simsiam:SimSiam",
        "st_mem": "cardialign.pretrain.methods.st_mem:StMem",
        "ts_tcc": "cardialign.pretrain.methods.ts_tcc:TsTcc",
        "wav2vec2_cmsc": "cardialign.pretrain.methods.wav2vec2_cmsc:Wav2Vec2Cmsc",
    },
    check=_inherits("cardialign.pretrain.methods.base:Method", "cardialign.pretrain.config:MethodConfig"),
)
"""`method.name` -> the class, a `pretrain.methods.base.Method`."""

ENCODERS = Table(
    "encoder",
    {
        "cardialign": "cardialign.pretrain.encoders.cardialign:CardiAlignEncoder",
        "beat_transformer": "cardialign.pretrain.encoders.beat_transformer:BeatTransformer",
        "conv_transformer": "cardialign.pretrain.encoders.conv_transformer:ConvTransformer",
        "resnet1d": "cardialign.pretrain.encoders.resnet1d:ResNet1d",
        "s4": "cardialign.pretrain.encoders.s4:S4Encoder",
        "time_spectrum": "cardialign.pretrain.encoders.time_spectrum:TimeSpectrum",
        "vit1d": "cardialign.pretrain.encoders.vit1d:Vit1d",
    },
    check=_inherits("cardialign.pretrain.encoders.base:EcgEncoder", "cardialign.pretrain.config:EncoderConfig"),
)
"""`encoder.name` -> the class, a `pretrain.encoders.base.EcgEncoder`."""
