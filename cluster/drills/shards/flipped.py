"""Bits that flip in a shard while it is read."""

from __future__ import annotations

from pathlib import Path

from cardialign.cluster.drills.drill import Drill
from cardialign.cluster.drills.ground import Ground
from cardialign.cluster.drills.outcome import Outcome
from cardialign.cluster.drills.shards.restored import damaged_and_restored

EVERY_BYTES = 997
"""One flipped byte of so many: every record of the shard has some."""


def run(ground: Ground) -> Outcome:
    def flip(path: Path) -> None:
        with path.open("r+b") as file:  # in place: who has it open sees it
            content = bytearray(file.read())
            for place in range(EVERY_BYTES, len(content), EVERY_BYTES):
                content[place] ^= 1 << ground.random.randrange(8)
            file.seek(0)
            file.write(content)

    return damaged_and_restored(ground, "shard-flipped", flip)


DRILL = Drill(
    fault="bit flips in a shard during the epoch",
    promise="No damaged record is trained on: the run ends naming the shard, and goes on bit for bit when it is back.",
    run=run,
)
