"""Our shards in stock WebDataset, and by row in `torch.utils.data.DataLoader` and others:
`from cardialign.webdataset import decode_ecg, EcgSamples`."""

from __future__ import annotations

from cardialign.data_shards.extras import needed_by

with needed_by("cardialign.webdataset", "shards"):
    from cardialign.data_shards.stream.stock import EcgSamples, decode_ecg

__all__ = ["EcgSamples", "decode_ecg"]
