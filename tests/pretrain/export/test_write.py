"""An exported encoder gives what the trained model gave and needs neither our code nor a pickle.

It refuses to be anything but what was written.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import zipfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest
import torch

from cardialign.data_shards.errors import UserError
from cardialign.pretrain.encoders.base import create_encoder
from cardialign.pretrain.export.loaded import load_encoder, untrained_encoder
from cardialign.pretrain.export.program import save_program
from cardialign.pretrain.export.write import export_encoder
from cardialign.pretrain.run.archive import pickled_parts
from cardialign.pretrain.run.integrity import verify_export, write_digests
from tests.support.small_encoder import SPEC, small_config, small_model


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """These models are so small that threads only wait for each other, most of all on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


TEXTS = ["Atrial fibrillation", "Normal ECG. Sinus rhythm", "Left bundle branch block"]


def ecg(batch=3, seed=0):
    return np.random.default_rng(seed).normal(0, 0.3, (batch, 12, SPEC.samples)).astype(np.float32)


def export(config, model, out, training=None, program=False):
    return export_encoder(config, model.state_dict(), out, training=training or {}, spec=SPEC, program=program)


@pytest.fixture(scope="module")
def trained():
    return small_model()


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    config, model = trained
    out = tmp_path_factory.mktemp("export") / "encoder"
    return export(config, model, out, training={"steps": 7, "data_fingerprint": "ab12"}, program=True)


def test_a_folder_whose_name_is_no_text_is_refused_before_the_writer_ends_the_process(trained, tmp_path):
    config, model = trained
    for out in (tmp_path / "caf\udce9", tmp_path / "\udcff" / "encoder"):
        with pytest.raises(UserError, match="no UTF-8 text"):
            export(config, model, out)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def copy(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / "copy")


def test_the_loaded_encoder_embeds_ecgs_as_the_trained_model_did(trained, exported):
    signal = ecg()
    expected = trained[1].ecg(torch.from_numpy(signal), torch.ones(3, 12, dtype=torch.bool)).embedding
    embedded = load_encoder(exported).embed(signal, sampling_rate=100)
    assert embedded.dtype == np.float32 and embedded.shape == (3, 8)
    np.testing.assert_allclose(embedded, expected.detach().numpy(), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(embedded, axis=1), 1, atol=1e-5)


def test_the_loaded_encoder_embeds_texts_as_the_trained_model_did(trained, exported):
    loaded = load_encoder(exported)
    pooled = torch.from_numpy(loaded.text_encoder.embed(TEXTS))
    np.testing.assert_allclose(
        loaded.embed_text(TEXTS), trained[1].text(text_embedding=pooled).detach().numpy(), atol=1e-6
    )


def test_large_batches_and_single_records_give_the_same_rows(exported):
    loaded, signal = load_encoder(exported), ecg(130)
    together = loaded.embed(signal, sampling_rate=100)
    np.testing.assert_allclose(
        together[[0, 64, 129]], [loaded.embed(signal[k], sampling_rate=100)[0] for k in (0, 64, 129)], atol=1e-6
    )


def test_masked_leads_change_nothing_whatever_they_hold(exported):
    loaded, signal = load_encoder(exported), ecg()
    mask = np.ones(12, dtype=bool)
    mask[[2, 7]] = False
    garbage = signal.copy()
    garbage[:, [2, 7]] = np.nan
    expected = loaded.embed(signal, sampling_rate=100, lead_mask=mask)
    assert np.array_equal(loaded.embed(garbage, sampling_rate=100, lead_mask=mask), expected)
    assert not np.allclose(expected, loaded.embed(signal, sampling_rate=100), atol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"leads": ["I", "II", "V1", "V2", "V3", "V4", "V5", "V6"]},
            r"missing here: III, aVR, aVL, aVF(.|\n)*allow_missing_leads=True",
        ),
        ({"sampling_rate": 250}, r"250 Hz, the encoder was trained at 100 Hz(.|\n)*resample=True"),
    ],
)
def test_eight_leads_and_another_rate_are_refused_with_the_remedy(exported, arguments, message):
    signal = ecg()[:, :8] if "leads" in arguments else ecg()
    with pytest.raises(UserError, match=message):
        load_encoder(exported).embed(signal, **{"sampling_rate": 100, **arguments})


CONSUMER = """
import importlib.abc, sys
class WithoutOurCode(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "cardialign":
            raise ImportError(name)
sys.meta_path.insert(0, WithoutOurCode())
import numpy as np, torch
program = torch.export.load(sys.argv[1]).module()
for folder in sys.argv[2:]:
    given = np.load(folder + "/in.npz")
    out = program(*(torch.from_numpy(given[name]) for name in ("signal", "lead_mask", "valid_samples")))
    np.save(folder + "/out.npy", out.detach().numpy())
"""


def test_plain_torch_runs_the_program_without_our_code_for_any_batch(exported, tmp_path):
    loaded, cases = load_encoder(exported), {}
    for batch in (1, 5):
        signal = ecg(batch, seed=batch)
        mask, valid = np.ones((batch, 12), dtype=bool), np.full(batch, SPEC.samples)
        mask[0, 3], valid[-1] = False, 120
        signal[-1, :, 120:] = 0
        folder = tmp_path / str(batch)
        folder.mkdir()
        np.savez(folder / "in.npz", signal=signal, lead_mask=mask, valid_samples=valid)
        cases[folder] = loaded.embed(signal, sampling_rate=100, lead_mask=mask, valid_samples=valid)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    words = [sys.executable, "-I", "-c", CONSUMER, str(exported / "encoder.pt2"), *map(str, cases)]
    done = subprocess.run(
        words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    for folder, expected in cases.items():
        np.testing.assert_allclose(np.load(folder / "out.npy"), expected, atol=1e-5)


def test_the_program_answers_what_is_no_ecg_in_millivolts_with_nan_and_leaves_the_other_rows_alone(exported):
    """An ECG of 0.3 mV is 300 uV and 0.0003 V; no heart gives 100 mV or 20 uV, which is where the library refuses."""
    program = torch.export.load(exported / "encoder.pt2").module()
    signal, mask, valid = torch.from_numpy(ecg(10)), torch.ones(10, 12, dtype=torch.bool), torch.full((10,), 200)
    plain = program(signal, mask, valid)
    torch.testing.assert_close(plain.norm(dim=1), torch.ones(10), atol=1e-5, rtol=0)
    wrong, leads, samples = signal.clone(), mask.clone(), valid.clone()
    wrong[1] *= 1000  # microvolts
    wrong[2] /= 1000 * 100  # volts, of a small ECG
    wrong[3, 5, 7], wrong[4, 0, 199] = torch.nan, torch.inf
    wrong[5] = 1.0  # flat leads alone
    leads[6], samples[7], samples[8] = False, 0, -3
    found = program(wrong, leads, samples)
    assert found.isnan().all(dim=1).tolist() == [k not in (0, 9) for k in range(10)]
    assert torch.equal(found[[0, 9]], plain[[0, 9]])
    hidden, mask[0, 3], valid[9] = signal.clone(), False, 150
    expected = program(hidden, mask, valid)
    hidden[0, 3], hidden[9, :, 150:] = torch.nan, 1e6  # what is masked, and what is behind the record
    assert torch.equal(program(hidden, mask, valid), expected) and expected.isfinite().all()
    hidden[0, 3], mask[0, 3] = 0.5, True  # a flat lead is masked, as the library does
    torch.testing.assert_close(program(hidden, mask, valid), expected, atol=1e-6, rtol=0)


@pytest.mark.slow
def test_the_other_ways_to_pool_weigh_and_normalise_can_be_traced_too(tmp_path):
    config = small_config(
        encoder={**small_config().encoder.model_dump(), "pooling": "resample", "group_attention": "eca"}
    )
    torch.manual_seed(0)
    encoder = create_encoder(config.encoder, SPEC, "lead-std").eval()
    save_program(encoder, tmp_path / "encoder.pt2")
    given = (torch.from_numpy(ecg()), torch.rand(3, 12) > 0.2, torch.tensor([200, 150, 90]))
    program = torch.export.load(tmp_path / "encoder.pt2").module()
    torch.testing.assert_close(program(*given), encoder(*given).embedding, atol=1e-5, rtol=0)


def test_no_file_holds_a_pickle(exported):
    for path in exported.iterdir():
        head = path.read_bytes()[:2]
        if path.suffix == ".pt2":
            assert pickled_parts(path) == []
        else:
            assert path.suffix in (".json", ".safetensors") or path.name == "README.md"
            assert head != b"PK" and head[:1] != b"\x80"


def test_a_pickle_in_a_program_would_be_found(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "inner")
    with zipfile.ZipFile(tmp_path / "program.pt2", "w") as archive:
        archive.write(tmp_path / "inner", "p/data/sample_inputs/model.pt")
    assert pickled_parts(tmp_path / "program.pt2") == ["p/data/sample_inputs/model.pt"]


def test_the_contract_and_the_provenance_say_what_a_consumer_must_know(exported):
    contract = json.loads((exported / "signal_contract.json").read_text())
    assert contract["leads"][:6] == ["I", "II", "III", "aVR", "aVL", "aVF"]
    assert (contract["units"], contract["sampling_rate"], contract["samples"], contract["embedding_dim"]) == (
        "mV",
        100.0,
        200,
        8,
    )
    provenance = json.loads((exported / "provenance.json").read_text())
    assert provenance["training"] == {"steps": 7, "data_fingerprint": "ab12"}
    assert provenance["temperature"] == pytest.approx(0.07)
    assert provenance["versions"]["torch"] == torch.__version__


def test_no_path_of_the_training_machine_leaves_with_the_encoder(trained, tmp_path):
    config = small_config(data={"shards": str(tmp_path / "secret-place")})
    out = export(config, trained[1], tmp_path / "encoder")
    assert not any(b"secret-place" in path.read_bytes() for path in out.iterdir())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: flip(f / "model.safetensors"), "model.safetensors: content changed"),
        (lambda f: (f / "text_head.safetensors").unlink(), "text_head.safetensors: missing"),
        (lambda f: (f / "extra.pkl").write_bytes(b"x"), "extra.pkl: not part of the export"),
        (lambda f: (f / "signal_contract.json").write_text("{}"), "signal_contract.json: content changed"),
        (lambda f: (f / "digests.json").unlink(), "is not an exported encoder"),
    ],
)
def test_a_changed_missing_or_extra_file_is_named(copy, damage, message):
    damage(copy)
    with pytest.raises(UserError, match=message):
        load_encoder(copy)


def flip(path):
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def test_an_existing_folder_is_not_overwritten_and_a_failed_export_leaves_nothing(
    trained, exported, tmp_path, monkeypatch
):
    config, model = trained
    with pytest.raises(UserError, match="exists already"):
        export(config, model, exported)

    def full_disk(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cardialign.pretrain.export.write.save_file", full_disk)
    with pytest.raises(UserError, match="No space left on device"):
        export(config, model, tmp_path / "encoder")
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_not_finite_or_of_another_shape_are_refused(trained, tmp_path):
    config, model = trained
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state["ecg.projection.bias"][0] = float("nan")
    with pytest.raises(UserError, match=r"NaN or infinity \(first: ecg\.projection\.bias\)"):
        export_encoder(config, state, tmp_path / "a", training={}, spec=SPEC)
    wider = small_config(encoder={**config.encoder.model_dump(), "width": 32})
    with pytest.raises(UserError, match="do not fit the configuration"):
        export(wider, model, tmp_path / "b")


def test_a_trained_text_encoder_travels_with_the_export(tmp_path):
    config, model = small_model(text={"encoder": "minilm", "max_tokens": 16, "trainable": "partial", "train_layers": 1})
    with torch.no_grad():
        for parameter in model.text.transformer.parameters():
            if parameter.requires_grad:
                parameter.mul_(1.3)
    loaded = load_encoder(export(config, model, tmp_path / "encoder"))
    ids, lengths = loaded.text_encoder.tokenize(TEXTS)
    mask = torch.arange(16)[None] < torch.from_numpy(lengths)[:, None]
    with torch.no_grad():
        expected = model.text(token_ids=torch.from_numpy(ids), token_mask=mask)
    np.testing.assert_allclose(loaded.embed_text(TEXTS), expected.numpy(), atol=1e-5)
    assert not np.allclose(
        untrained_encoder(config, SPEC).text_encoder.embed(TEXTS), loaded.text_encoder.embed(TEXTS), atol=1e-3
    )


@pytest.fixture(scope="module")
def without_reports(trained, tmp_path_factory):
    """The export of a method that reads no reports: the same ECG encoder, and nothing of the text side."""
    config, model = trained
    state = {name: tensor for name, tensor in model.state_dict().items() if name.startswith("ecg.")}
    out = tmp_path_factory.mktemp("without") / "encoder"
    return export_encoder(config, state, out, training={}, spec=SPEC, program=False)


def test_an_encoder_without_reports_embeds_ecgs_as_one_with_reports_does(exported, without_reports):
    assert not (without_reports / "text_head.safetensors").exists()
    signal = ecg()
    expected = load_encoder(exported).embed(signal, sampling_rate=100)
    assert np.array_equal(load_encoder(without_reports).embed(signal, sampling_rate=100), expected)
    provenance = json.loads((without_reports / "provenance.json").read_text())
    assert provenance["text_encoder"] is None and provenance["parameters"]["text_head"] == 0


def test_words_for_an_encoder_without_reports_are_refused_with_what_to_use_instead(without_reports):
    loaded = load_encoder(without_reports)
    for encoder in (loaded, loaded.untrained()):
        with pytest.raises(UserError, match="trained without reports") as caught:
            encoder.embed_text(TEXTS)
        assert "embeddings" in caught.value.remedy and "trained with reports" in caught.value.remedy
        with pytest.raises(UserError, match="trained without reports"):
            _ = encoder.text_encoder
    twin = load_encoder(without_reports).untrained(1).embed(ecg(), sampling_rate=100)
    with_head = untrained_encoder(loaded.config, SPEC, 1).embed(ecg(), sampling_rate=100)
    assert np.array_equal(twin, with_head)


def test_another_text_encoder_than_the_trained_one_is_refused(copy):
    loaded = load_encoder(copy)
    loaded.provenance["text_encoder"]["fingerprint"] = "0" * 64
    with pytest.raises(UserError, match=r"minilm here has fingerprint \w+, the encoder was trained with 000000000000"):
        loaded.embed_text(TEXTS)
    assert loaded.embed(ecg(), sampling_rate=100).shape == (3, 8)


def test_the_untrained_twin_is_reproducible_differs_from_the_trained_one_and_leaves_the_generator_alone(exported):
    loaded = load_encoder(exported)
    before = torch.random.get_rng_state()
    twins = [loaded.untrained(seed) for seed in (1, 1, 2)]
    assert torch.equal(before, torch.random.get_rng_state())
    a, b, c = (twin.embed(ecg(), sampling_rate=100) for twin in twins)
    assert np.array_equal(a, b)
    assert not np.allclose(a, c) and not np.allclose(a, loaded.embed(ecg(), sampling_rate=100))


def test_an_encoder_whose_method_is_not_here_still_embeds(copy):
    values = json.loads((copy / "config.json").read_text())
    values["method"] = {"name": "of-a-plugin", "strength": 3}
    (copy / "config.json").write_text(json.dumps(values))
    write_digests(copy)
    encoder = load_encoder(copy)
    assert encoder.embed(ecg(), sampling_rate=100).shape[-1] == 8
    assert encoder.embed_text(TEXTS).shape == (len(TEXTS), 8)
    with pytest.raises(UserError, match="unknown method 'of-a-plugin'"):
        encoder.config  # noqa: B018


@pytest.mark.slow
def test_equal_weights_make_equal_exports_whenever_they_are_written(trained, exported, tmp_path):
    config, model = trained
    again = export(config, model, tmp_path / "again", training={"steps": 7, "data_fingerprint": "ab12"}, program=True)
    values = json.loads((again / "digests.json").read_text())
    (again / "digests.json").write_text(json.dumps(values | {"created": "1999-01-01T00:00:00+00:00"}))
    assert verify_export(again) == verify_export(exported)


def export_on_a_full_disk(folder):
    """In a process of its own, whose files may not grow beyond a few sizes."""
    config, model = small_model()
    limits, said = resource.getrlimit(resource.RLIMIT_FSIZE), []
    for largest in (200, 20_000, 60_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, limits[1]))
        try:
            export(config, model, folder / "encoder", program=True)
        except UserError as error:
            said.append(str(error))
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    return said


@pytest.mark.slow
def test_a_full_disk_is_named_whichever_file_it_meets_and_leaves_nothing(trained, tmp_path):
    with ProcessPoolExecutor(1, get_context("spawn")) as other:
        said = other.submit(export_on_a_full_disk, tmp_path).result(120)
    assert len(said) == 3 and all("free space" in text for text in said), said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("device", ["nope", "cuda:77", "meta", None, 5.5])
def test_a_device_that_is_not_here_is_named(exported, device):
    with pytest.raises(UserError, match="cannot be used here"):
        load_encoder(exported, device)


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o002])
def test_all_files_of_an_export_have_the_rights_that_new_files_have(tmp_path, umask):
    before = os.umask(umask)
    try:
        config, model = small_model()
        out = export_encoder(config, model.state_dict(), tmp_path / "out", training={}, spec=SPEC, program=False)
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in out.iterdir()}
    assert any(name.endswith(".safetensors") for name in modes)
    assert set(modes.values()) == {0o666 & ~umask}
