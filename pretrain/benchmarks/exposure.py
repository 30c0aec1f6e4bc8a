"""CPU seconds of the questions to an exposure certificate: whether so many names are in a list of as many."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from cardialign.data_shards.secret import Secret
from cardialign.pretrain.export.exposure import hashes
from cardialign.pretrain.export.exposure.certificate import Certificate
from cardialign.pretrain.export.exposure.hashes import PATIENT, RECORD, Group
from cardialign.pretrain.export.exposure.merkle import Tree

GROUP = Group(RECORD)


def made_up(names: list[str], salt: Secret) -> Certificate:
    """A certificate whose records are these names; their commitments are left out: a question does not read them."""
    first, second = hashes.tags(names, GROUP, salt)
    order = np.lexsort((second, first))
    rows = np.zeros((len(names), hashes.ROW), dtype=np.uint8)
    rows[:, : hashes.TAG] = np.stack([first[order], second[order]], axis=1).astype(">u8").view(np.uint8)
    lists = {RECORD: rows, PATIENT: rows[:0]}
    return Certificate("", {"lists": {kind: {"root": Tree(each).root} for kind, each in lists.items()}}, lists)


def time_questions(names: int, listed: int) -> list[dict[str, Any]]:
    """Seconds of `names` questions to a list of `listed`: none of them in it, half of them, all that it has."""
    salt = Secret("a salt of the benchmark alone")
    own = [f"mimic-{40_000_000 + k}" for k in range(listed)]
    certificate, rows = made_up(own, salt), []
    for what, share in (("none", 0.0), ("half", 0.5), ("all", 1.0)):
        inside = min(listed, int(share * names))
        asked = [*own[:inside], *(f"other-{k}" for k in range(names - inside))]
        started = time.process_time()
        found = certificate.find(asked, GROUP, salt)
        seconds = time.process_time() - started
        rows.append({"in_the_list": what, "names": names, "found": int((found >= 0).sum()), "seconds": seconds})
    return rows
