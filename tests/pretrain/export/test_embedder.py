"""An encoder in scikit-learn is what `embed` is: in pipelines, searches, clones, pickles and data frames."""

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.utils import estimator_checks

import cardialign
from cardialign.data_shards.errors import UserError
from cardialign.data_shards.record import STANDARD_LEADS
from cardialign.pretrain.export.write import export_encoder
from cardialign.sklearn import EcgEmbedder
from tests.support.small_encoder import SPEC, small_model


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    config, model = small_model()
    out = tmp_path_factory.mktemp("export") / "encoder"
    return Path(export_encoder(config, model.state_dict(), out, training={}, spec=SPEC, program=False))


def ecgs(n: int = 12, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.3, (n, 12, SPEC.samples)).astype(np.float32)


def test_it_gives_what_embed_gives_whatever_form_is_allowed(folder: Path) -> None:
    embedder = EcgEmbedder(folder, sampling_rate=100)
    expected = cardialign.load_encoder(folder).embed(ecgs(), sampling_rate=100)
    assert np.array_equal(embedder.fit(ecgs()).transform(ecgs()), expected)
    assert np.array_equal(EcgEmbedder(folder, sampling_rate=100).transform(ecgs()), expected), "nothing to learn"
    order = list(reversed(STANDARD_LEADS))
    turned = EcgEmbedder(folder, sampling_rate=100, leads=order, units="uV").transform(ecgs()[:, ::-1] * 1000)
    np.testing.assert_allclose(turned, expected, atol=1e-5)
    longer = np.concatenate([ecgs(), ecgs(seed=1)], axis=-1)
    assert np.array_equal(EcgEmbedder(folder, sampling_rate=100, allow=("crop",)).transform(longer), expected)


def test_it_stands_in_a_pipeline_a_search_and_a_data_frame(folder: Path) -> None:
    signal, truth = ecgs(24), np.arange(24) % 2
    signal[truth == 1, 0] *= 8  # what a linear map of the embedding can see
    pipeline = make_pipeline(EcgEmbedder(folder, sampling_rate=100), LogisticRegression(C=100.0))
    assert cross_val_score(pipeline, signal, truth, cv=3, scoring="roc_auc").mean() > 0.8
    search = GridSearchCV(pipeline, {"logisticregression__C": [0.1, 10.0]}, cv=2).fit(signal, truth)
    assert search.predict(signal).shape == (24,)
    names = pipeline[:1].fit(signal).get_feature_names_out()
    assert list(names[:2]) == ["ecgembedder0", "ecgembedder1"] and len(names) == 8
    frame = EcgEmbedder(folder, sampling_rate=100).set_output(transform="pandas").fit_transform(signal)
    assert frame.shape == (24, 8) and frame.columns[7] == "ecgembedder7"


def test_a_clone_and_a_pickle_hold_settings_and_no_weights(folder: Path, tmp_path: Path) -> None:
    copied = tmp_path / "encoder"
    shutil.copytree(folder, copied)
    embedder = EcgEmbedder(copied, sampling_rate=100).fit(ecgs())
    again = clone(embedder)
    assert again.get_params() == embedder.get_params() and not hasattr(again, "digest_")
    stored = pickle.dumps(embedder)
    assert len(stored) < 2000 and b"cardialign.sklearn" in stored and b"pretrain.export.embedder" not in stored
    (tmp_path / "pickle").write_bytes(stored)
    np.save(tmp_path / "signal.npy", ecgs(2))
    code = (
        "import pickle, sys, numpy; embedder = pickle.load(open(sys.argv[1], 'rb'))\n"
        "numpy.save(sys.argv[3], embedder.transform(numpy.load(sys.argv[2])))"
    )
    words = [str(tmp_path / name) for name in ("pickle", "signal.npy", "found.npy")]
    subprocess.run([sys.executable, "-c", code, *words], check=True, timeout=120)
    np.testing.assert_allclose(np.load(tmp_path / "found.npy"), embedder.transform(ecgs(2)), atol=1e-6)

    config, model = small_model(seed=1)
    shutil.rmtree(copied)
    export_encoder(config, model.state_dict(), copied, training={}, spec=SPEC, program=False)
    with pytest.raises(UserError, match="and was fitted with"):
        pickle.loads(stored).transform(ecgs())
    assert pickle.loads(stored).fit(ecgs()).transform(ecgs()).shape == (12, 8)


def test_what_does_not_fit_is_refused_as_embed_refuses_it(folder: Path, tmp_path: Path) -> None:
    wrong = [
        (EcgEmbedder(folder), ecgs(), "sampling_rate is None"),
        (EcgEmbedder(folder, sampling_rate="100"), ecgs(), "sampling_rate is '100'"),
        (EcgEmbedder(sampling_rate=100), ecgs(), "no encoder is named"),
        (EcgEmbedder(folder, sampling_rate=100, allow="crop"), ecgs(), "allow is 'crop'"),
        (EcgEmbedder(folder, sampling_rate=100, allow=("trim",)), ecgs(), "allow is"),
        (EcgEmbedder(folder, sampling_rate=100, allow=[["crop"]]), ecgs(), "allow is"),
        (EcgEmbedder(folder, sampling_rate=100, allow=None), ecgs(), "allow is None"),
        (EcgEmbedder(folder, sampling_rate=10**400), ecgs(), "is not between 10 and 100000 Hz"),
        (EcgEmbedder("models:/a@b", sampling_rate=100), ecgs(), "address of a registry"),
        (EcgEmbedder(tmp_path / "nothing", sampling_rate=100), ecgs(), "nothing"),
        (EcgEmbedder(folder, sampling_rate=100), ecgs()[0], "X is 12 x 200, not ECGs x leads x samples"),
        (EcgEmbedder(folder, sampling_rate=100), [ecgs()[0], ecgs()[0, :, :50]], "X is 2, not ECGs"),
        (EcgEmbedder(folder, sampling_rate=100), ecgs()[:, :8], "8"),
        (EcgEmbedder(folder, sampling_rate=250), ecgs(), "250"),
        (EcgEmbedder(folder, sampling_rate=100), ecgs() * 1000, "mV"),
        (EcgEmbedder(folder, sampling_rate=100), np.full((1, 12, 200), np.nan), "finite"),
        (EcgEmbedder(folder, sampling_rate=100), np.ma.masked_array(ecgs(), mask=True), "samples are masked out"),
    ]
    for embedder, signal, told in wrong:
        with pytest.raises(UserError, match=told):
            embedder.fit(signal)
    with pytest.raises(NotFittedError):
        EcgEmbedder(folder, sampling_rate=100).get_feature_names_out()
    fitted = EcgEmbedder(folder, sampling_rate=100).fit(ecgs())
    with pytest.raises(UserError, match="250"):
        fitted.set_params(sampling_rate=250).transform(ecgs())


def test_the_checks_of_scikit_learn_that_apply(folder: Path) -> None:
    """The others of `check_estimator` give it tables of two dimensions; its tag says that it takes three."""
    embedder = EcgEmbedder(folder, sampling_rate=100)
    for check in (
        "check_estimator_cloneable",
        "check_estimator_repr",
        "check_estimator_tags_renamed",
        "check_get_params_invariance",
        "check_set_params",
        "check_no_attributes_set_in_init",
        "check_parameters_default_constructible",
        "check_valid_tag_types",
    ):
        getattr(estimator_checks, check)("EcgEmbedder", clone(embedder))
