"""What is done to a file of an exported encoder, and what whoever loads it must say."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from cardialign.cluster.drills.checkpoints.half_done import half_done
from cardialign.cluster.drills.ground import Ground
from cardialign.cluster.drills.measures import require
from cardialign.cluster.drills.outcome import Outcome
from cardialign.data_shards.errors import UserError
from cardialign.pretrain.run.integrity import DIGESTS


def each_file_damaged(ground: Ground, name: str, damage: Callable[[Path], None]) -> Outcome:
    """Damage one file after the other of a copy of an exported encoder; each time it must be refused by the name of the
    file. A damaged digest list says a wrong digest or name of another file: it must be refused, by whichever name, or
    be the same encoder, by its digest, where it has lost what is no part of it."""
    from cardialign.pretrain.export.from_run import export_run
    from cardialign.pretrain.export.opening import open_encoder

    whole = ground.runs / "export"
    if not whole.is_dir():
        export_run(half_done(ground), whole)
    digest, tried = open_encoder(whole).digest, []
    for number, path in enumerate(sorted(each for each in whole.rglob("*") if each.is_file())):
        folder = ground.run_dir(f"{name}-{number}")
        shutil.copytree(whole, folder)
        damage(folder / path.relative_to(whole))
        try:
            opened = open_encoder(folder).digest
        except UserError as error:
            said = f"{error.problem} {error.remedy}"
            named = path.name in said or path.name == DIGESTS
            require(named and error.remedy, f"{path.name}: the refusal does not name it: {said}")
        else:
            require(path.name == DIGESTS and opened == digest, f"{path.name}: the damaged encoder was loaded")
        shutil.rmtree(folder)
        tried.append(path.name)
    return Outcome(note=f"{len(tried)} files: {', '.join(tried)}")
