"""Our shards for loaders of other people: `from cardialign.webdataset import decode_ecg, EcgSamples`.

    urls = ["work/shards/shard-000000.tar", ...]
    webdataset.WebDataset(urls, shardshuffle=100).decode(decode_ecg)           # sample["ecg"]["millivolts"]
    datasets.load_dataset("webdataset", data_files=urls, streaming=True)       # decode_ecg(".ecg", sample["ecg"])
    torch.utils.data.DataLoader(EcgSamples("work/shards"), batch_size=64, num_workers=4)
    datasets.Dataset.from_generator(lambda: iter(EcgSamples("work/shards")))
    litdata.optimize(fn=samples.__getitem__, inputs=list(range(len(samples))), output_dir=..., chunk_bytes="64MB")

The first two read tars as they lie and check each payload; `EcgSamples` also checks it against the index of the set.
"""

from __future__ import annotations

from cardialign.data_shards.extras import needed_by

with needed_by("cardialign.webdataset", "shards"):
    from cardialign.data_shards.stream.stock import EcgSamples, decode_ecg

__all__ = ["EcgSamples", "decode_ecg"]
