"""Ten ECGs lie in every export: of hearts as they are called, with the embeddings that the trained model gives."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from scipy.signal import find_peaks

from cardialign.data_shards.errors import UserError
from cardialign.data_shards.record import STANDARD_LEADS, SignalSpec
from cardialign.pretrain.export.contract import SignalContract
from cardialign.pretrain.export.doors.golden import NO_NUMBER, golden_ecgs, read_golden
from cardialign.pretrain.export.loaded import load_encoder
from cardialign.pretrain.export.write import export_encoder
from cardialign.pretrain.methods.base import Method
from cardialign.pretrain.run.integrity import CARD, DIGESTS, GOLDEN, read_export, verify_export, write_digests
from tests.support.small_encoder import SPEC, small_config, small_model

SINUS, AFIB, WIDE, FAST, LOW, CHILD, FEW, EARLY, FLAT, REFUSED = range(10)


@pytest.fixture(scope="module")
def trained() -> Method:
    return small_model()[1]


@pytest.fixture(scope="module")
def exported(trained: Method, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("golden") / "encoder"
    return export_encoder(small_config(), trained.state_dict(), out, training={}, spec=SPEC, program=False)


@pytest.fixture(scope="module")
def hearts() -> np.ndarray:
    """mV, ten seconds at 500 Hz."""
    contract = SignalContract.of(SignalSpec(500, 10), "none", 8, 0.0)
    return golden_ecgs(contract)["signal"] / 1000.0


def beats(record: np.ndarray) -> np.ndarray:
    """Samples at which the leads change most, at 500 Hz."""
    slope = np.convolve(np.abs(np.diff(record, axis=1)).sum(axis=0), np.ones(20) / 20, "same")
    return np.asarray(find_peaks(slope, height=0.5 * np.quantile(slope, 0.99), distance=150)[0])


def test_the_hearts_are_what_they_are_called(hearts: np.ndarray) -> None:
    narrow = [SINUS, AFIB, FAST, LOW, CHILD]
    rr = {each: np.diff(beats(hearts[each])) / 500 for each in narrow}
    rates = {each: 60 / np.median(rr[each]) for each in narrow}
    assert 50 < rates[SINUS] < 100 < rates[FAST] and rates[CHILD] > 80
    uneven = {each: np.std(rr[each]) / np.mean(rr[each]) for each in narrow}
    assert uneven[AFIB] > 0.15 and max(uneven[SINUS], uneven[FAST]) < 0.06
    windows = np.stack([hearts[LOW][:, at - 60 : at + 60] for at in beats(hearts[LOW])[1:-1]])
    heights = np.median(np.ptp(windows, axis=2), axis=0)
    assert heights[:6].max() < 0.5, "mV of QRS in the limb leads"
    steep = np.quantile(np.abs(np.diff(hearts, axis=2)), 0.998, axis=2) / np.maximum(np.ptp(hearts, axis=2), 1e-9)
    assert np.median(steep[WIDE]) < 0.7 * np.median(steep[SINUS]), "a wide QRS rises slowly for its height"


def test_einthoven_holds_where_nothing_was_taken_away(hearts: np.ndarray) -> None:
    np.testing.assert_allclose(hearts[:6, 1] - hearts[:6, 0], hearts[:6, 2], atol=2e-3)


def test_each_form_that_a_consumer_may_get_wrong_is_there() -> None:
    contract = SignalContract.of(SignalSpec(100, 10), "none", 8, 0.0)
    ecgs = golden_ecgs(contract)
    recorded = [STANDARD_LEADS[k] for k in np.flatnonzero(ecgs["lead_mask"][FEW])]
    assert recorded == ["I", "II", "V2"] and ecgs["lead_mask"].sum() == 9 * 12 + 3
    assert ecgs["valid_samples"].tolist() == [1000] * 7 + [600] + [1000] * 2
    assert not ecgs["signal"][EARLY, :, 600:].any() and ecgs["signal"][EARLY, :, :600].any()
    assert np.ptp(ecgs["signal"][FLAT, 8]) == 0 and ecgs["lead_mask"][FLAT, 8]
    assert (ecgs["signal"] == NO_NUMBER).sum() == 1 and NO_NUMBER in ecgs["signal"][REFUSED, 1]
    assert "age" not in ecgs


def test_a_record_of_a_day_is_not_made_and_the_length_of_the_file_stays_bounded() -> None:
    contract = SignalContract.of(SignalSpec(100, 86_400), "none", 8, 0.0)
    assert golden_ecgs(contract)["signal"].shape == (10, 12, 6000)


def test_the_embeddings_are_those_of_the_trained_model(trained: Method, exported: Path) -> None:
    stored = load_file(exported / GOLDEN)
    signal = torch.from_numpy(stored["signal"][:REFUSED] / 1000.0).float()
    heard = torch.from_numpy(stored["lead_mask"][:REFUSED])
    heard[FLAT, 8] = False  # by hand: a lead of one value holds no signal
    with torch.no_grad():
        wanted = trained.ecg(signal, heard, torch.from_numpy(stored["valid_samples"][:REFUSED])).embedding
    np.testing.assert_allclose(stored["embedding"][:REFUSED], wanted.numpy(), atol=1e-6)
    assert np.isnan(stored["embedding"][REFUSED]).all()
    apart = np.linalg.norm(stored["embedding"][:REFUSED, None] - stored["embedding"][None, :REFUSED], axis=-1)
    assert apart[~np.eye(REFUSED, dtype=bool)].min() > 1e-3, "ten that are told apart"


def test_they_are_the_same_bytes_each_time_and_one_of_the_files_that_are_verified(
    trained: Method, exported: Path, tmp_path: Path
) -> None:
    again, threads = tmp_path / "again", torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        export_encoder(small_config(), trained.state_dict(), again, training={}, spec=SPEC, program=False)
        assert torch.get_num_threads() == threads + 1
    finally:
        torch.set_num_threads(threads)
    assert verify_export(again) == verify_export(exported)
    content = (again / GOLDEN).read_bytes()
    assert len(content) < 50_000, "12 leads of 200 samples, ten times, two bytes each"
    (again / GOLDEN).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match=f"{GOLDEN}: content changed"):
        verify_export(again)


def test_an_export_from_before_there_were_any_is_read_and_told(exported: Path, tmp_path: Path) -> None:
    old = Path(shutil.copytree(exported, tmp_path / "old"))
    for name in (GOLDEN, CARD, DIGESTS):
        (old / name).unlink()
    write_digests(old)
    signal = np.random.default_rng(0).normal(0, 0.3, (1, 12, SPEC.samples))
    ours, theirs = (load_encoder(each).embed(signal, sampling_rate=100) for each in (old, exported))
    np.testing.assert_array_equal(ours, theirs)
    with pytest.raises(UserError, match="exported before exports had ECGs"):
        read_golden(read_export(old), load_encoder(old).contract)


@pytest.mark.parametrize("part", ["signal", "embedding", "lead_mask"])
def test_what_is_not_of_the_form_of_the_contract_is_refused(exported: Path, tmp_path: Path, part: str) -> None:
    odd = Path(shutil.copytree(exported, tmp_path / "odd"))
    stored = load_file(odd / GOLDEN)
    save_file({**stored, part: stored[part][:, :-1].copy()}, odd / GOLDEN)
    (odd / DIGESTS).unlink()
    write_digests(odd)
    with pytest.raises(UserError, match="not ten ECGs of the form"):
        read_golden(read_export(odd), load_encoder(odd).contract)


def test_an_encoder_that_gives_no_numbers_for_a_plain_ecg_is_not_exported(tmp_path: Path) -> None:
    config, model = small_model()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    name = next(each for each in state if each.startswith("ecg.") and state[each].ndim > 1)
    state[name].fill_(3e38)  # a number, and its product is none
    with pytest.raises(UserError, match="no numbers for a plain ECG"):
        export_encoder(config, state, tmp_path / "out", training={}, spec=SPEC, program=False)
    assert not (tmp_path / "out").exists()


def test_an_encoder_that_reads_the_age_is_given_some(tmp_path: Path) -> None:
    config = small_config(encoder={**small_config().encoder.model_dump(exclude={"name"}), "age_gate": True})
    from cardialign.pretrain.methods.base import create_method

    torch.manual_seed(0)
    model = create_method(config, SPEC).eval()
    out = export_encoder(config, model.state_dict(), tmp_path / "out", training={}, spec=SPEC, program=False)
    stored = load_file(out / GOLDEN)
    assert stored["age"][CHILD] == 3 and np.isnan(stored["age"][FEW]) and np.isfinite(stored["age"][:2]).all()
    assert "age" in (out / CARD).read_text()
