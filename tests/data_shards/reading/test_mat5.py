"""MATLAB 5 files read as `scipy.io.loadmat` reads them, and no changed byte does worse than a ValueError."""

from __future__ import annotations

import os
import struct
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.io import loadmat, savemat

from cardialign.data_shards.reading.mat5 import read_mat5
from tests.support.wfdb_files import ecg_counts

VALUES: dict[str, Any] = {
    "int16": ecg_counts(50),
    "uint8": np.arange(6, dtype=np.uint8).reshape(2, 3),
    "float32": np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4),
    "int64": np.array([[-(1 << 40), 7]]),
    "scalar": 63.5,
    "cube": np.arange(24.0).reshape(2, 3, 4),
    "empty": np.zeros((0, 0)),
    "text": "Weiblich, 1 µV",
    "ECG": {"sex": "Male", "age": 63, "data": ecg_counts(40) / 1000, "other": np.zeros((0, 0))},
}


@pytest.mark.parametrize("compressed", [False, True])
def test_every_kind_of_variable_is_what_scipy_reads(tmp_path: Path, compressed: bool) -> None:
    path = tmp_path / "a.mat"
    savemat(path, VALUES, do_compression=compressed)
    theirs = loadmat(path, mat_dtype=True)
    for name in VALUES:
        ours = read_mat5(path, name)
        if isinstance(ours, dict):
            fields = theirs[name].reshape(-1)[0]
            assert tuple(ours) == fields.dtype.names
            for field, value in ours.items():
                assert value == fields[field][0] if isinstance(value, str) else np.array_equal(value, fields[field])
        elif isinstance(ours, str):
            assert ours == theirs[name][0]
        else:
            np.testing.assert_array_equal(ours, theirs[name])
            assert ours.shape == theirs[name].shape


def test_a_big_endian_file(tmp_path: Path) -> None:
    def element(kind: int, content: bytes) -> bytes:
        return struct.pack(">II", kind, len(content)) + content + b"\0" * (-len(content) % 8)

    body = element(6, struct.pack(">II", 6, 0)) + element(5, struct.pack(">ii", 2, 3)) + element(1, b"val")
    body += element(9, np.arange(6.0).astype(">f8").tobytes())
    (tmp_path / "a.mat").write_bytes(b"MATLAB 5.0".ljust(124) + b"\x01\x00MI" + element(14, body))
    np.testing.assert_array_equal(read_mat5(tmp_path / "a.mat", "val"), [[0, 2, 4], [1, 3, 5]])


def test_what_is_not_there_is_named_with_what_is(tmp_path: Path) -> None:
    savemat(
        tmp_path / "a.mat", {"other": 1.0, "cells": np.array([[1, "a"]], dtype=object), "complex": np.array([[1j]])}
    )
    with pytest.raises(ValueError, match="no variable 'val'; it holds other"):
        read_mat5(tmp_path / "a.mat", "val")
    with pytest.raises(ValueError, match="of class 1"):
        read_mat5(tmp_path / "a.mat", "cells")
    (tmp_path / "b.mat").write_bytes(b"not a mat file")
    with pytest.raises(ValueError, match="no MATLAB 5 file"):
        read_mat5(tmp_path / "b.mat", "val")
    with pytest.raises(FileNotFoundError):
        read_mat5(tmp_path / "c.mat", "val")


def test_a_pipe_and_a_file_of_version_7_3_are_refused_by_what_they_are(tmp_path):
    os.mkfifo(tmp_path / "pipe.mat")
    with pytest.raises(OSError, match="not a plain file"):
        read_mat5(tmp_path / "pipe.mat", "val")
    (tmp_path / "new.mat").write_bytes((b"MATLAB 7.3 MAT-file".ljust(124) + b"\0\2IM").ljust(520))
    with pytest.raises(ValueError, match=r"MATLAB 7\.3 \(HDF5\).*save it with -v7"):
        read_mat5(tmp_path / "new.mat", "val")


@settings(max_examples=150, deadline=None)
@given(
    changes=st.lists(st.tuples(st.integers(120, 900), st.integers(0, 255)), min_size=1, max_size=4),
    compressed=st.booleans(),
    cut=st.booleans(),
)
def test_changed_and_cut_bytes_give_a_value_or_a_value_error(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]], compressed: bool, cut: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "changed.mat"
    savemat(path, {"ECG": {"sex": "Male", "age": 63, "data": ecg_counts(20) / 1000}}, do_compression=compressed)
    raw = bytearray(path.read_bytes())
    for at, byte in changes:
        raw[at % len(raw)] = byte
    path.write_bytes(raw[: changes[0][0]] if cut else raw)
    try:
        fields = read_mat5(path, "ECG")
    except ValueError:
        return
    assert isinstance(fields, (dict, str, np.ndarray))


def bomb(variables: int, mebibytes: int) -> bytes:
    """Zeros, a thousandth of their size, before a variable `val`."""
    packed = zlib.compress(bytes(mebibytes << 20), 1)
    return b"MATLAB 5.0 MAT-file".ljust(124) + b"\0\1IM" + (struct.pack("<II", 15, len(packed)) + packed) * variables


@pytest.mark.parametrize(("variables", "mebibytes"), [(3, 300), (500, 20)])
def test_compressed_variables_that_nobody_asked_for_are_not_unpacked(
    tmp_path: Path, variables: int, mebibytes: int
) -> None:
    path = tmp_path / "bomb.mat"
    path.write_bytes(bomb(variables, mebibytes))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="no variable 'val'"):
            read_mat5(path, "val")
        assert tracemalloc.get_traced_memory()[1] < 2 * path.stat().st_size + (8 << 20)
    finally:
        tracemalloc.stop()


def test_what_is_asked_for_is_found_behind_a_bomb_and_is_no_bomb_itself(tmp_path: Path) -> None:
    path = tmp_path / "a.mat"
    savemat(path, {"val": ecg_counts(50)}, do_compression=True)
    path.write_bytes(bomb(2, 50) + path.read_bytes()[128:])
    np.testing.assert_array_equal(read_mat5(path, "val"), ecg_counts(50))
    for columns, zeros, told in ((300 << 20, 8, "a matrix of shape"), (8, 257 << 20, "too large")):
        head = struct.pack("<IIII", 6, 8, 12, 0) + struct.pack("<IIii", 5, 8, 1, columns) + struct.pack("<HH", 1, 3)
        content = head + b"val\0" + bytes(zeros)
        packed = zlib.compress(struct.pack("<II", 14, len(content)) + content, 1)
        path.write_bytes(bomb(0, 1) + struct.pack("<II", 15, len(packed)) + packed)
        with pytest.raises(ValueError, match=told):
            read_mat5(path, "val")


def test_real_original_files_read_as_scipy_reads_them(real_data: Path) -> None:
    paths = sorted((real_data / "cpsc2018-original").rglob("*.mat"))
    assert paths
    for path in paths:
        ours, theirs = read_mat5(path, "ECG"), loadmat(path)["ECG"].reshape(-1)[0]
        assert isinstance(ours, dict) and ours["sex"] == theirs["sex"][0]
        np.testing.assert_array_equal(ours["data"], theirs["data"])
        np.testing.assert_array_equal(ours["age"], theirs["age"])
