"""How a text is scored beside an ECG leaves with the encoder: by cosine, or in a way that its method brings."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from cardialign.data_shards.errors import UsageError, UserError
from cardialign.pretrain.evaluation.prompts import load_prompts
from cardialign.pretrain.evaluation.zero_shot import combined
from cardialign.pretrain.export.loaded import LoadedEncoder, load_encoder
from cardialign.pretrain.export.write import export_encoder
from cardialign.pretrain.methods.base import create_method
from cardialign.pretrain.methods.d_beta.method import DBeta
from tests.pretrain.methods.test_d_beta import config_of
from tests.support.small_bert import write_small_bert
from tests.support.small_encoder import SPEC, small_model

TEXTS = ["Sinus rhythm", "Atrial fibrillation. Left bundle branch block", "Normal ECG"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[DBeta, Path]]:
    folder = tmp_path_factory.mktemp("scorings")
    config = config_of(write_small_bert(folder / "bert"))
    torch.manual_seed(5)
    method = create_method(config, SPEC).eval()
    assert isinstance(method, DBeta)
    with torch.no_grad():  # a trained report encoder is not the published one
        for parameter in method.text.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    export_encoder(config, method.state_dict(), folder / "encoder", training={}, spec=SPEC, program=False)
    with pytest.MonkeyPatch.context() as patch:  # an export does not say where its report encoder lay
        patch.setenv("CARDIALIGN_TEXT_ENCODERS", str(folder))
        yield method, folder / "encoder"


@pytest.fixture(scope="module")
def encoder(trained: tuple[DBeta, Path]) -> LoadedEncoder:
    return load_encoder(trained[1])


def signals() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(4, 12, SPEC.samples)).astype(np.float32) * 0.4


def test_its_own_way_is_the_cosine_of_the_features_that_were_trained(
    trained: tuple[DBeta, Path], encoder: LoadedEncoder
) -> None:
    method, _ = trained
    assert encoder.scorings == ("cosine", "fused")
    found = encoder.class_scores(signals(), TEXTS, sampling_rate=100)
    ids, lengths = encoder.text_encoder.tokenize(TEXTS)
    with torch.no_grad():
        output = method.ecg(torch.from_numpy(signals()), torch.ones(4, 12, dtype=torch.bool))
        x = torch.tanh(method.ecg.projection(output.features))
        for j, length in enumerate(lengths):
            words = method.text.states(torch.from_numpy(ids[j : j + 1, :length]), torch.ones(1, length))
            t = method.text.head.features(words[:, 0] / words[:, 0].norm())[0]  # type: ignore[union-attr, operator]
            for i in range(4):
                assert found[i, j] == pytest.approx(float(x[i] @ t / (x[i].norm() * t.norm())), abs=1e-5)
    np.testing.assert_allclose(np.linalg.norm(encoder.embed(signals(), sampling_rate=100), axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(encoder.embed_text(TEXTS), axis=1), 1, rtol=1e-5)


def test_the_fused_way_is_the_logit_of_a_pair_for_every_record_beside_every_text(
    trained: tuple[DBeta, Path], encoder: LoadedEncoder
) -> None:
    method, _ = trained
    found = encoder.class_scores(signals(), TEXTS, sampling_rate=100, scoring="fused")
    ids, lengths = encoder.text_encoder.tokenize(TEXTS)
    for i, signal in enumerate(torch.from_numpy(signals())):
        with torch.no_grad():
            patches = method.ecg.embed_patches(signal[None], torch.ones(1, 12, dtype=torch.bool))
            states = method.ecg.encode_patches(patches)
        for j, length in enumerate(lengths):
            with torch.no_grad():
                words = method.text.states(torch.from_numpy(ids[j : j + 1, :length]), torch.ones(1, length))
                no, yes = method.fused.fuse(states, None, words, None).aligned[0]
            assert found[i, j] == pytest.approx(float(yes - no), abs=1e-5)
    alone = encoder.class_scores(signals()[1:2], TEXTS[2:], sampling_rate=100, scoring="fused")
    assert alone[0, 0] == pytest.approx(found[1, 2], abs=1e-5), "neither other records nor other texts have a say"


def test_a_missing_lead_changes_no_fused_score_whatever_its_samples_hold(encoder: LoadedEncoder) -> None:
    mask, given = np.arange(12) != 7, signals()
    other = given.copy()
    other[:, 7] = 3.0 * np.random.default_rng(1).normal(size=(4, SPEC.samples))
    scores = [
        encoder.class_scores(each, TEXTS, sampling_rate=100, scoring="fused", lead_mask=mask, allow_missing_leads=True)
        for each in (given, other)
    ]
    np.testing.assert_array_equal(*scores)
    assert not np.allclose(scores[0], encoder.class_scores(given, TEXTS, sampling_rate=100, scoring="fused"))


def test_an_untrained_encoder_has_the_same_ways_with_fresh_weights(encoder: LoadedEncoder) -> None:
    untrained, again = encoder.untrained(3), encoder.untrained(3)
    assert untrained.scorings == encoder.scorings
    one, two, trained = (
        each.class_scores(signals(), TEXTS, sampling_rate=100, scoring="fused") for each in (untrained, again, encoder)
    )
    np.testing.assert_array_equal(one, two)
    assert not np.allclose(one, trained)


def test_a_way_that_an_encoder_does_not_have_is_refused_with_those_it_has(encoder: LoadedEncoder) -> None:
    with pytest.raises(UsageError, match="does not score texts by 'levels'") as raised:
        encoder.class_scores(signals(), TEXTS, sampling_rate=100, scoring="levels")
    assert "cosine, fused" in raised.value.remedy


def test_an_encoder_without_other_ways_is_exported_as_before(tmp_path: Path) -> None:
    config, model = small_model()
    export_encoder(config, model.state_dict(), tmp_path / "encoder", training={}, spec=SPEC, program=False)
    assert sorted(path.name for path in (tmp_path / "encoder").iterdir()) == [
        "README.md",
        "config.json",
        "digests.json",
        "golden.safetensors",
        "model.safetensors",
        "provenance.json",
        "sbom.cdx.json",
        "signal_contract.json",
        "text_head.safetensors",
    ]
    encoder = load_encoder(tmp_path / "encoder")
    assert encoder.scorings == ("cosine",) and "scorings" not in encoder.provenance
    found = encoder.class_scores(signals(), TEXTS, sampling_rate=100)
    wanted = encoder.embed(signals(), sampling_rate=100) @ encoder.embed_text(TEXTS).T
    np.testing.assert_array_equal(found, wanted)


def test_weights_that_are_not_those_of_the_method_are_refused(trained: tuple[DBeta, Path], tmp_path: Path) -> None:
    method, _ = trained
    config = config_of(Path(method.text_config.encoder))
    state = {name: value for name, value in method.state_dict().items() if name != "fused.aligned.bias"}
    export_encoder(config, state, tmp_path / "encoder", training={}, spec=SPEC, program=False)
    loaded = load_encoder(tmp_path / "encoder")
    assert loaded.class_scores(signals(), TEXTS, sampling_rate=100).shape == (4, 3)
    with pytest.raises(UserError, match=r"scorings\.safetensors: 1 tensors differ \(first: aligned\.bias"):
        loaded.class_scores(signals(), TEXTS, sampling_rate=100, scoring="fused")


def test_scores_of_prompts_become_scores_of_classes_by_mean_or_best() -> None:
    words = load_prompts("virtual-findings-v2")
    first, second = (
        dataclasses.replace(words.classes[k], prompts=own, against=against)
        for k, own, against in ((0, ("a", "b"), ("c",)), (1, ("c",), ()))
    )
    prompts = dataclasses.replace(words, classes=(first, second))
    scores = np.array([[1.0, 3.0, -1.0], [0.0, 4.0, 8.0]], dtype=np.float32)
    np.testing.assert_array_equal(combined(scores, prompts, ["a", "b", "c"]), [[3.0, -1.0], [-6.0, 8.0]])
    best = dataclasses.replace(prompts, combine="max", classes=(dataclasses.replace(first, against=()), second))
    np.testing.assert_array_equal(combined(scores, best, ["a", "b", "c"]), [[3.0, -1.0], [4.0, 8.0]])
    pieces = np.stack([scores, scores + 2], axis=1)
    np.testing.assert_array_equal(combined(pieces, best, ["a", "b", "c"]), [[4.0, 0.0], [5.0, 9.0]])
