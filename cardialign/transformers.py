"""Encoders in Hugging Face's transformers: `import cardialign.transformers`, and `AutoModel.from_pretrained` opens
exported folders."""

from __future__ import annotations

from cardialign.data_shards.extras import needed_by

with needed_by("cardialign.transformers", "transformers"):
    from cardialign.pretrain.export.doors.hugging_face import CardialignConfig, CardialignModel, make_known

make_known()

__all__ = ["CardialignConfig", "CardialignModel"]
