"""What codes of a label set are called: by the shipped prompt sets that answer to it, else by SNOMED CT or SCP-ECG."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def add_names(figures: dict[str, Any]) -> None:
    """`names` to the labels of `set_statistics`."""
    for name, labels in figures["labels"].items():
        labels["names"] = names_of(name, labels["codes"])


def names_of(label_set: str, codes: Iterable[str]) -> dict[str, str]:
    """Code -> name, for those that have one. Of several prompt sets for a label set the newest version counts.

    A user's own label set may have the name of a published one: unless a prompt set, or SCP-ECG, knows at least half of
    the codes, its names are those of others.
    """
    from cardialign.data_shards.errors import UserError
    from cardialign.data_shards.sources.vocabularies.scp import NAMES
    from cardialign.data_shards.sources.vocabularies.snomed import STATEMENTS
    from cardialign.pretrain.evaluation.prompts import load_prompts, prompt_set_names

    wanted = list(codes)
    found = {code: STATEMENTS[code] for code in wanted if code in STATEMENTS}
    scp = {code: NAMES[code] for code in wanted if code in NAMES}
    found |= scp if 2 * len(scp) >= len(wanted) else {}
    for name in prompt_set_names():  # sorted: a later version comes later
        try:
            prompts = load_prompts(name)
        except UserError:  # a set of another package that cannot be used
            continue
        if prompts.label_set == label_set:
            known = {each.code: each.name for each in prompts.classes if each.code in wanted}
            found |= known if 2 * len(known) >= len(wanted) else {}
    return found
