"""The whole build in one process: WFDB files -> committed shards, with quality flags, codec, digests, index and manifest."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from data_shards.benchmark_material import Material, Measurement
from data_shards.build import build_shards
from data_shards.record import EcgRecord
from data_shards.sources.base import Entry
from data_shards.sources.common import read_ecg


def measure_build(material: Material) -> Measurement:
    source = _WfdbFiles(material.wfdb_paths)
    out = material.folder / "built"

    def build() -> int:
        shutil.rmtree(out, ignore_errors=True)
        return build_shards(source, out, spec=material.spec, workers=1).records

    return Measurement({"build": build})


class _WfdbFiles:
    """WFDB files without tables."""

    name = "wfdb-files"
    label_sets: tuple[str, ...] = ()

    def __init__(self, paths: list[Path]) -> None:
        self.root = paths[0].parent
        self._entries = [Entry(path.name, path.name, {}) for path in paths]

    @classmethod
    def options(cls) -> dict[str, str]:
        return {}

    def entries(self) -> list[Entry]:
        return self._entries

    def read(self, entry: Entry) -> EcgRecord:
        return read_ecg(
            self.root / entry.path,
            entry.key,
            source=self.name,
            statements=(),
            labels={},
            patient=entry.key,
            fold=1,
            age_years=None,
            sex=None,
            acquired=None,
        )

    def describe(self) -> dict[str, Any]:
        return {"name": self.name}
