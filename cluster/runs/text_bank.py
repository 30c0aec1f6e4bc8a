"""The text bank of a shard set for one report encoder: opened when it is there, built when it is not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cardialign.data_shards.text.bank import TextBank
    from cardialign.pretrain.config import TextConfig


def _facts(bank: TextBank, config: TextConfig, fingerprint: str, made: bool) -> dict[str, Any]:
    return {
        "path": str(bank.path),
        "reports": len(bank),
        "dimensions": bank.dim,
        "encoder": config.encoder,
        "encoder_fingerprint": fingerprint,
        "made": made,
    }


def find_text_bank(
    shards: Path, config: TextConfig, statements: bool = False, distant: int = 0, reports: Path | None = None
) -> dict[str, Any] | None:
    """Path, reports and dimensions of the bank for this encoder and style, None when it has not been built.

    statements: None too for a bank of an earlier release, which has no vectors of its statements; distant: and for one
    without the table of so many most distant reports; reports: the bank of these, which lie beside the set, and not of
    its own.

    Raises UserError: no such encoder; DataError: a bank that is not as it was built.
    """
    from cardialign.data_shards.text.bank import STATEMENT_VECTORS, NoTextBankError, TextBank, distant_name
    from cardialign.pretrain.text.encoder import TextEncoder

    fingerprint = TextEncoder(config).fingerprint
    try:
        bank = TextBank.open(shards, fingerprint, config.style, reports=reports)
    except NoTextBankError:  # absent, or of another state of the shard set
        return None
    wanted = [STATEMENT_VECTORS] * statements + ([distant_name(distant)] if distant else [])
    if any(name not in bank.description.get("derived", {}) for name in wanted):
        return None
    return _facts(bank, config, fingerprint, made=False)


def ensure_text_bank(
    shards: Path, config: TextConfig, progress: Callable[..., None] | None = None, reports: Path | None = None
) -> dict[str, Any]:
    """The same, building what is not there.

    Raises UserError (no such encoder) or DataError (no report, disk full).
    """
    from cardialign.data_shards.shard_set.shard_set import ShardSet
    from cardialign.data_shards.text.bank import build_text_bank
    from cardialign.pretrain.text.encoder import TextEncoder

    shard_set = ShardSet.open(shards, reports=reports)
    found = find_text_bank(shards, config, statements=True, reports=reports)
    if found is not None:
        return found
    encoder: Any = TextEncoder(config)
    return _facts(
        build_text_bank(shard_set, encoder, style=config.style, progress=progress),
        config,
        encoder.fingerprint,
        made=True,
    )
