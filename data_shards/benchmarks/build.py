"""The whole build in one process: WFDB files -> committed shards, with quality flags, codec, digests, index and
manifest.

Beside it what is usually written by hand: `wfdb.rdsamp` and `webdataset.TarWriter`, float32 `.npy` members, nothing
checked, no index.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from cardialign.data_shards.benchmarks.material import Material, Measurement, rate
from cardialign.data_shards.benchmarks.table import Row
from cardialign.data_shards.build.build import SetPlan, build_shards
from cardialign.data_shards.record import EcgRecord
from cardialign.data_shards.sources.base import Entry
from cardialign.data_shards.sources.shared.record import read_ecg

MIMIC_IV_ECG = 800_035
CORES = (2, 32)
BY_HAND_RECORDS = 64

ROWS = (
    Row(
        "WFDB files -> committed shards",
        rate("build"),
        "records/s",
        at_least=400,
        against={"rdsamp -> TarWriter": rate("build_by_hand")},
    ),
    *(
        Row(f"... so all of MIMIC-IV-ECG on {cores} cores takes", f"mimic_iv_ecg_minutes_on_{cores}_cores", "minutes")
        for cores in CORES
    ),
)


def measure_build(material: Material) -> Measurement:
    source = _WfdbFiles(material.wfdb_paths)
    out = material.folder / "built"

    def build() -> int:
        shutil.rmtree(out, ignore_errors=True)
        return build_shards(source, out, SetPlan(material.spec), workers=1).records

    def by_hand() -> int:
        import wfdb
        from webdataset import TarWriter

        names = [str(path) for path in material.wfdb_paths[:BY_HAND_RECORDS]]
        with TarWriter(str(material.folder / "by-hand.tar")) as tar:
            for number, name in enumerate(names):
                tar.write({"__key__": f"record-{number:06d}", "npy": wfdb.rdsamp(name)[0].T.astype(np.float32)})
        return len(names)

    jobs = {"build": build, **({"build_by_hand": by_hand} if material.compare else {})}
    return Measurement(jobs, dict, ROWS)


def minutes_of_mimic_iv_ecg(records_per_s_per_core: float) -> dict[str, float]:
    """What the rate of one core comes to for 800,035 records, if the disk keeps up."""
    return {
        f"mimic_iv_ecg_minutes_on_{cores}_cores": MIMIC_IV_ECG / records_per_s_per_core / cores / 60 for cores in CORES
    }


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
