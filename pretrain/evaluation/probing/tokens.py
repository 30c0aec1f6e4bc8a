"""An encoder's tokens of many records, computed once: on disk, because they are some hundred times a feature vector.

Legend: n records, N tokens of a record, D their width.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cardialign.data_shards.array_files import load_array
from cardialign.data_shards.errors import UserError
from cardialign.data_shards.stream.stream import iterate_rows
from cardialign.pretrain.evaluation.features import EmbedOptions, reader_of
from cardialign.pretrain.evaluation.probing.tasks import Records
from cardialign.pretrain.export.ages import aged
from cardialign.pretrain.export.usable import UsableEncoder

VALUES, MASK = "values.npy", "mask.npy"


@dataclass(frozen=True)
class Tokens:
    """values float32 (n, N, D), memory-mapped; mask bool (n, N), False where a token means nothing; places: which of
    the n records are meant, in their order, None = all."""

    values: np.ndarray
    mask: np.ndarray
    places: np.ndarray | None = None

    def at(self, places: np.ndarray) -> Tokens:
        return replace(self, places=places if self.places is None else self.places[places])

    def rows(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """float32 (m, N, D), bool (m, N); what means nothing is 0."""
        at = places if self.places is None else self.places[places]
        mask = self.mask[at]
        return np.where(mask[..., None], self.values[at], np.float32(0)), mask

    @classmethod
    def open(cls, folder: Path) -> Tokens:
        return cls(load_array(folder / VALUES, mapped=True), load_array(folder / MASK))


def read_tokens(encoder: UsableEncoder, chosen: Records, folder: Path, options: EmbedOptions | None = None) -> Tokens:
    """The tokens of every record, written to the folder, which is made.

    Raises UserError when the encoder has none, or the disk does not hold them.
    """
    options = options or EmbedOptions()
    reader = reader_of(encoder.token_reader, chosen.shard_set)
    spec, n = chosen.shard_set.spec, len(chosen.rows)
    shown = spec.samples if chosen.first_seconds is None else round(chosen.first_seconds * spec.sampling_rate)
    values, mask, at = None, np.zeros((n, 0), dtype=bool), 0
    for batch in iterate_rows(chosen.shard_set, chosen.rows, options.batch_size, options.threads):
        batch.signal[..., shown:] = 0.0
        valid = np.minimum(batch.valid_samples, shown)
        output = aged(reader, batch.age_years)(batch.signal, batch.lead_mask, valid)
        if output.tokens is None or output.token_mask is None:
            raise UserError(
                f"encoder {encoder.digest[:24]} has no tokens, only features of whole records",
                "leave --attention out: the linear probe reads its features",
            )
        tokens = output.tokens.float().cpu().numpy()
        if values is None:
            _room(folder, n * tokens[0].nbytes)
            shape = (n, *tokens.shape[1:])
            values = np.lib.format.open_memmap(folder / VALUES, "w+", dtype=np.float32, shape=shape)
            mask = np.zeros(shape[:2], dtype=bool)
        here = slice(at, at + len(tokens))
        values[here], mask[here] = tokens, output.token_mask.cpu().numpy()
        at += len(tokens)
    assert values is not None and at == n, f"{at} of {n} records were read"
    values.flush()
    np.save(folder / MASK, mask, allow_pickle=False)
    return Tokens.open(folder)


def _room(folder: Path, wanted: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if wanted > free:
        raise UserError(
            f"the tokens of an attention-pooled probe take {wanted / 1e9:.1f} GB; {folder} has {free / 1e9:.1f} free",
            "free space, probe fewer records, or leave --attention out",
        )
