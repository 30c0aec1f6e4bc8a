"""Whether the text encoder reads of every class something of its own: what it cuts off or does not know is no word."""

from __future__ import annotations

import logging

from cardialign.data_shards.errors import UserError
from cardialign.pretrain.evaluation.prompts import PromptSet
from cardialign.pretrain.export.usable import UsableEncoder

log = logging.getLogger(__name__)

_REMEDY = "say what tells them apart within its first {tokens} tokens, in words that it knows (`prompts show`)"


def check_told_apart(encoder: UsableEncoder, prompts: PromptSet, tell: bool = True) -> None:
    """tell: say how many prompts are longer than what the encoder reads.

    Raises UserError for two classes, or a class and what stands `against` it, of which the encoder reads the same: they
    would have one score, or none, and it would be given as two figures.
    """
    texts = list(dict.fromkeys(text for each in prompts.classes for text in (*each.prompts, *each.against)))
    read = encoder.tokens_of(texts)
    if read is None:
        return
    ids, lengths = read
    tokens = ids.shape[1]
    cut = int((lengths >= tokens).sum())
    if cut and tell:
        log.warning(
            "prompts=%s texts=%d of=%d remark=they fill all %d tokens that the text encoder reads, what they say "
            "behind them is not read", prompts.name, cut, len(texts), tokens,
        )  # fmt: skip
    key = {text: row.tobytes() for text, row in zip(texts, ids, strict=True)}
    first: dict[tuple[frozenset[bytes], frozenset[bytes]], str] = {}
    for each in prompts.classes:
        own, against = frozenset(key[text] for text in each.prompts), frozenset(key[text] for text in each.against)
        other = first.setdefault((own, against), each.code)
        if other != each.code:
            raise UserError(
                f"prompt set {prompts.name}: the text encoder reads the same for the classes {other:.60} and "
                f"{each.code:.60}",
                _REMEDY.format(tokens=tokens),
            )
        if own & against:
            raise UserError(
                f"prompt set {prompts.name}: of class {each.code:.60} the text encoder reads a prompt and a text of "
                "`against` as the same",
                _REMEDY.format(tokens=tokens),
            )
