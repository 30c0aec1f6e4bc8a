"""What is done without shards of this kind, on the same records: `wfdb.rdsamp`, one `.mat` file per record, stock
`webdataset`."""

from __future__ import annotations

import io
import tarfile

import numpy as np

from cardialign.data_shards.benchmarks.material import Job, Material, Measurement


def measure_others(material: Material) -> Measurement:
    """Each job ends with float32 mV of every record, as the stream does, but reads in file order and checks nothing."""
    jobs = {"wfdb_rdsamp": _rdsamp(material), "mat_float32": _mat(material), "webdataset_npy": _webdataset(material)}
    places = {
        "wfdb_rdsamp": material.wfdb_paths[0].parent,
        "mat_float32": material.folder / "mat",
        "webdataset_npy": material.folder / "npy",
    }

    def figures() -> dict[str, float]:
        sizes = {name: sum(file.stat().st_size for file in folder.iterdir()) for name, folder in places.items()}
        return {f"{name}_bytes_per_record": size / len(material.records) for name, size in sizes.items()}

    return Measurement(jobs, figures)


def _rdsamp(material: Material) -> Job:
    import wfdb

    names = [str(path) for path in material.wfdb_paths]
    return lambda: sum(np.ascontiguousarray(wfdb.rdsamp(name)[0].T, dtype=np.float32).shape[0] == 12 for name in names)


def _mat(material: Material) -> Job:
    """One uncompressed file of float32 mV per record."""
    from scipy.io import loadmat, savemat

    folder = material.folder / "mat"
    folder.mkdir()
    names = [str(folder / f"r{i:06d}.mat") for i in range(len(material.records))]
    for name, record in zip(names, material.records, strict=True):
        savemat(name, {"val": record.millivolts()})
    return lambda: sum(np.ascontiguousarray(loadmat(name)["val"]).shape[0] == 12 for name in names)


def _webdataset(material: Material) -> Job:
    """What most pipelines do: float32 `.npy` members, read and decoded by the stock loader."""
    import webdataset

    (material.folder / "npy").mkdir()
    path = material.folder / "npy" / "records.tar"
    with tarfile.open(path, "w") as tar:
        for i, record in enumerate(material.records):
            buffer = io.BytesIO()
            np.save(buffer, record.millivolts())
            info = tarfile.TarInfo(f"record-{i:06d}.npy")
            info.size = buffer.tell()
            buffer.seek(0)
            tar.addfile(info, buffer)
    return lambda: sum(1 for _ in webdataset.WebDataset(str(path), shardshuffle=False).decode())
