"""How a report encoder pools and how much it reads is what its files say; no path, and no code of theirs, decides."""

from __future__ import annotations

import hashlib
import json
import logging
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cardialign.data_shards.errors import UserError
from cardialign.pretrain.config import TextConfig, load_config, parse_config
from cardialign.pretrain.text.declared import declared
from cardialign.pretrain.text.encoder import TextEncoder
from cardialign.pretrain.text.tower import TextTower
from cardialign.pretrain.training.checkpoints.state import changed_keys

REPORTS = ["Sinus rhythm. Normal ECG.", "Atrial fibrillation with rapid ventricular response."]


def encoder(folder: Path, **text: Any) -> TextEncoder:
    return TextEncoder(TextConfig.model_validate({"encoder": str(folder), "max_tokens": 32, **text}))


@pytest.fixture
def copy(small_folder: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the small encoder under another path; files: name -> JSON object, text, or None to take it away."""

    def make(place: str = "encoder", **files: Any) -> Path:
        folder = tmp_path / place
        shutil.copytree(small_folder, folder)
        for name, content in files.items():
            path = folder / name.replace("__", "/")
            path = path if path.suffix else path.with_suffix(".json")
            path.unlink(missing_ok=True)
            if content is not None:
                path.parent.mkdir(exist_ok=True)
                path.write_text(content if isinstance(content, str) else json.dumps(content))
        return folder

    return make


def modules(*kinds: str) -> list[dict[str, str]]:
    return [
        {"path": "" if kind == "Transformer" else f"{i}_{kind}", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]


def with_config(folder: Path, **values: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    return folder


def test_the_same_files_pool_alike_wherever_they_lie(copy: Callable[..., Path]) -> None:
    plain, word = encoder(copy("encoders/mine")), encoder(copy("medcpt-experiments/mine"))
    assert plain.pooling == word.pooling == "mean" and plain.fingerprint == word.fingerprint
    np.testing.assert_array_equal(plain.embed(REPORTS), word.embed(REPORTS))


@pytest.mark.parametrize(
    ("said", "pooling"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, "mean"),
        ({"pooling_mode_mean_sqrt_len_tokens": True, "pooling_mode_mean_tokens": False}, "mean"),
        ({"pooling_mode": "cls", "embedding_dimension": 16}, "cls"),
        ({"pooling_mode": ["mean"]}, "mean"),
        ({"word_embedding_dimension": 16}, "mean"),  # what the library takes when nothing is said
    ],
)
def test_pooling_is_what_the_module_says(said: dict[str, Any], pooling: str, copy: Callable[..., Path]) -> None:
    alone = encoder(copy("alone", **{"1_Pooling__config": said}))
    listed = copy("listed", modules=modules("Transformer", "Pooling", "Normalize"), **{"1_Pooling__config": said})
    assert alone.pooling == encoder(listed).pooling == pooling


def test_pooled_vectors_are_those_of_the_library_by_hand(copy: Callable[..., Path]) -> None:
    """First token, or mean over the tokens that are not padding, at unit length (Reimers and Gurevych 2019)."""
    for pooling in ("cls", "mean"):
        found = encoder(copy(pooling, **{"1_Pooling__config": {"pooling_mode": pooling}}))
        tokens = found.tokenizer(REPORTS, padding=True, return_tensors="pt")
        with torch.no_grad():
            hidden = found.transformer(**tokens).last_hidden_state
        mask = tokens["attention_mask"][..., None]
        pooled = hidden[:, 0] if pooling == "cls" else (hidden * mask).sum(1) / mask.sum(1)
        np.testing.assert_allclose(found.embed(REPORTS), torch.nn.functional.normalize(pooled, dim=1), atol=1e-6)


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ({"pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": False}, "lasttoken"),
        ({"pooling_mode_max_tokens": True, "pooling_mode_mean_tokens": False}, "max_tokens"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, "cls_token with mean_tokens"),
        ({"pooling_mode_mean_tokens": False}, "none"),
        ({"pooling_mode": "weightedmean"}, "weightedmean"),
        ({"pooling_mode": 3}, "3"),
    ],
)
def test_another_pooling_is_refused_by_its_name(said: dict[str, Any], named: str, copy: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match=f"asks for pooling {named}; only cls and mean"):
        _ = encoder(copy(**{"1_Pooling__config": said})).pooling


@pytest.mark.parametrize("kind", ["Dense", "LayerNorm", "WeightedLayerPooling", "Router"])
def test_a_module_that_would_be_left_out_is_refused_by_its_name(kind: str, copy: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match=rf"module {kind} \(2_{kind}\)"):
        _ = encoder(copy(modules=modules("Transformer", "Pooling", kind))).pooling


def test_where_nobody_says_it_the_setting_does_and_else_it_is_refused(copy: Callable[..., Path]) -> None:
    silent = copy("medcpt", **{"1_Pooling__config": None})
    with pytest.raises(UserError, match=r"does not say how .*\n.*set text\.pooling to cls"):
        _ = encoder(silent).fingerprint
    with pytest.raises(UserError, match="does not say how"):
        TextTower(TextConfig(encoder=str(silent)), 8)
    assert encoder(silent, pooling="cls").pooling == "cls" and encoder(silent, pooling="mean").pooling == "mean"


def test_a_setting_that_differs_from_the_files_is_taken_aloud(
    copy: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    assert encoder(copy(), pooling="cls").pooling == "cls"
    assert "text.pooling=cls is taken, the model says mean" in caplog.text


def test_known_ids_pool_as_their_card_says_and_only_under_their_exact_name(
    copy: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    silent = copy(**{"1_Pooling__config": None})
    monkeypatch.setattr("cardialign.pretrain.text.encoder.encoder_folder", lambda word: silent)
    for name in ("ncbi/MedCPT-Query-Encoder", "ncbi/MedCPT-Article-Encoder"):
        assert TextEncoder(TextConfig(encoder=name)).pooling == "cls"
    for name in ("ncbi/MedCPT-Cross-Encoder", "someone/MedCPT-Query-Encoder", "emilyalsentzer/Bio_ClinicalBERT"):
        with pytest.raises(UserError, match=r"text\.pooling"):
            _ = TextEncoder(TextConfig(encoder=name)).pooling


def test_todays_right_choices_keep_their_fingerprint(minilm: TextEncoder) -> None:
    """Banks and exports of earlier releases are found by it: sha256 over weights, tokenizer, pooling and length."""

    def digest(*names: str) -> str:
        contents = [name.encode() + hashlib.sha256((minilm.folder / name).read_bytes()).digest() for name in names]
        return hashlib.sha256(b"".join(contents)).hexdigest()

    parts = [digest("model.safetensors"), digest("tokenizer.json", "vocab.txt", "tokenizer_config.json"), "mean", "128"]
    assert minilm.fingerprint == hashlib.sha256("\n".join(parts).encode()).hexdigest()


@pytest.mark.parametrize(
    ("config", "positions"),
    [
        ({"model_type": "bert", "max_position_embeddings": 512}, 512),
        ({"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1}, 512),
        ({"model_type": "xlm-roberta", "max_position_embeddings": 514}, 512),
        ({"model_type": "mpnet", "max_position_embeddings": 514, "pad_token_id": 1}, 512),
        ({"model_type": "flaubert", "n_positions": 64}, 64),
        ({"model_type": "t5", "n_positions": 512}, None),
        ({"model_type": "deberta-v2", "max_position_embeddings": 512, "relative_attention": True,
          "position_biased_input": False}, None),
    ],
)  # fmt: skip
def test_positions_of_every_family(config: dict[str, Any], positions: int | None, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert declared(tmp_path, "x").positions == positions


def real(folder: Path, kind: str, **values: Any) -> Path:
    """A one-layer model of transformers with random weights, saved as it saves itself."""
    import transformers

    small = {"vocab_size": 30522, "num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 16}
    small |= {"intermediate_size": 16, "max_position_embeddings": 66} | values
    torch.manual_seed(0)
    getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**small)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("kind", "positions"), [("Bert", 66), ("Roberta", 64), ("MPNet", 64), ("Electra", 66)])
def test_the_longest_text_is_what_the_model_can_embed(
    kind: str, positions: int, tmp_path: Path, minilm: TextEncoder
) -> None:
    folder = real(tmp_path / kind, kind)
    fits = encoder(folder, max_tokens=positions, pooling="mean")
    fits.tokenizer = minilm.tokenizer
    assert np.isfinite(fits.embed(["sinus rhythm with " * 60])).all()
    with pytest.raises(UserError, match=f"positions for {positions} tokens, text.max_tokens is {positions + 1}"):
        _ = encoder(folder, max_tokens=positions + 1, pooling="mean").fingerprint
    with pytest.raises(UserError, match=f"set text.max_tokens to {positions} or less"):
        TextTower(TextConfig(encoder=str(folder), pooling="mean"), 8)


def test_a_length_beyond_what_a_model_was_made_for_is_said(
    copy: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    _ = encoder(copy(sentence_bert_config={"max_seq_length": 16})).fingerprint
    assert "made for texts of up to 16 tokens, text.max_tokens is 32" in caplog.text


def test_a_model_that_lower_cases_its_texts_gets_them_so(copy: Callable[..., Path]) -> None:
    cased = copy("cased")
    tokenizer = json.loads((cased / "tokenizer.json").read_text())
    tokenizer["normalizer"]["lowercase"] = False
    (cased / "tokenizer.json").write_text(json.dumps(tokenizer))
    lowering = shutil.copytree(cased, cased.parent / "lowering")
    (lowering / "sentence_bert_config.json").write_text('{"max_seq_length": 64, "do_lower_case": true}')
    shouted, said = encoder(lowering).embed(["SINUS RHYTHM", "sinus rhythm"])
    np.testing.assert_allclose(shouted, said, rtol=0, atol=1e-6)
    assert encoder(lowering).fingerprint != encoder(cased).fingerprint


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_a_folder_that_wants_to_run_code_is_refused_and_nothing_is_asked(
    name: str, copy: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy()
    (folder / "evil.py").write_text("raise SystemExit('this ran')\n")
    values = json.loads((folder / name).read_text()) | {"auto_map": {"AutoModel": "evil.Model"}}
    (folder / name).write_text(json.dumps(values))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("somebody was asked on stdin"))
    with pytest.raises(UserError, match=r"run code of its own .*AutoModel: evil\.Model"):
        encoder(folder).embed(REPORTS)


def test_a_module_of_somebody_elses_package_is_refused(copy: Callable[..., Path]) -> None:
    listed = [*modules("Transformer"), {"path": "", "type": "custom_st.Pooling"}]
    with pytest.raises(UserError, match=r"run code of its own .*custom_st\.Pooling"):
        encoder(copy(modules=listed)).embed(REPORTS)


class _Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("a pickle was run",))


def damage(kind: str, folder: Path) -> None:
    weights, tokenizer = folder / "model.safetensors", folder / "tokenizer.json"
    if kind == "weights cut":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif kind == "weights a folder":
        weights.unlink()
        weights.mkdir()
    elif kind == "pickle":
        weights.unlink()
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"w": _Code()}))
    elif kind == "weights of another model":
        from safetensors.torch import load_file, save_file

        save_file({f"module.{name}": t for name, t in load_file(weights).items()}, weights, metadata={"format": "pt"})
    elif kind == "not finite":
        from safetensors.torch import load_file, save_file

        save_file({name: t * torch.nan for name, t in load_file(weights).items()}, weights, metadata={"format": "pt"})
    elif kind == "tokenizer cut":
        tokenizer.write_bytes(tokenizer.read_bytes()[:5000])
    elif kind == "tokenizer absent":
        for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
            (folder / name).unlink()
    elif kind == "small vocabulary":
        import transformers

        small = transformers.BertConfig(**json.loads((folder / "config.json").read_text()) | {"vocab_size": 1000})
        transformers.BertModel(small).save_pretrained(folder)
    elif kind == "config no JSON":
        (folder / "config.json").write_text("{nope")
    elif kind == "config deep":
        (folder / "config.json").write_text("[" * 100_000)
    elif kind == "config a list":
        (folder / "config.json").write_text("[]")
    elif kind == "another size":
        with_config(folder, hidden_size=32)


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("weights cut", "its weights cannot be read"),
        ("weights a folder", "its weights cannot be read"),
        ("pickle", "its weights cannot be read"),
        ("weights of another model", r"hold no weights for \d+ of its tensors .*random"),
        ("not finite", "not finite"),
        ("tokenizer cut", "its tokenizer cannot be read"),
        ("tokenizer absent", "its tokenizer knows no word"),
        ("small vocabulary", "its weights know 1000"),
        ("config no JSON", r"config\.json in .* cannot be read"),
        ("config deep", r"config\.json in .* cannot be read"),
        ("config a list", r"config\.json in .* cannot be read"),
        ("another size", "its weights cannot be read"),
    ],
)
def test_damaged_folders_are_told_in_a_sentence(kind: str, told: str, copy: Callable[..., Path]) -> None:
    folder = copy()
    damage(kind, folder)
    with pytest.raises(UserError, match=told) as caught:
        found = encoder(folder)
        _ = found.fingerprint
        found.embed(REPORTS)
    assert caught.value.remedy


def test_models_that_write_text_are_no_report_encoders(tmp_path: Path, minilm: TextEncoder) -> None:
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    gpt = real(tmp_path / "gpt", "GPT2", n_embd=16, n_layer=1, n_head=2, n_positions=64, **ends)
    with pytest.raises(UserError, match="is a decoder"):
        encoder(gpt, pooling="mean").load_transformer()
    bart = real(tmp_path / "bart", "Bart", d_model=16, encoder_layers=1, decoder_layers=1,
                encoder_attention_heads=2, decoder_attention_heads=2)  # fmt: skip
    with pytest.raises(UserError, match=r"model of type bart that writes text"):
        encoder(bart, pooling="mean").load_transformer()


def test_what_is_no_report_is_named(minilm: TextEncoder, copy: Callable[..., Path]) -> None:
    for wrong in (None, 3.5, float("nan"), b"Sinus rhythm", ["Sinus", "rhythm"]):
        with pytest.raises(UserError, match=r"text 1 is .* not text"):
            minilm.embed(["Sinus rhythm", wrong])  # type: ignore[list-item]
    with pytest.raises(UserError, match="the texts are one string"):
        minilm.embed("Sinus rhythm")  # type: ignore[arg-type]
    assert minilm.embed([]).shape == (0, 384)
    assert np.isfinite(minilm.embed([""])).all(), "its first token stands there even then"
    bare = copy()
    tokenizer = json.loads((bare / "tokenizer.json").read_text()) | {"post_processor": None}
    (bare / "tokenizer.json").write_text(json.dumps(tokenizer))
    (bare / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    with pytest.raises(UserError, match="the text ' ' has no token"):
        encoder(bare).embed(["Sinus rhythm", " "])


def test_a_relative_folder_is_found_from_everywhere_and_what_wins_is_said(
    copy: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = copy("ncbi/MedCPT-Query-Encoder")
    (tmp_path / "minilm").mkdir()
    monkeypatch.chdir(tmp_path)
    for word in ("./ncbi/MedCPT-Query-Encoder", str(folder)):
        assert load_config("cardialign-tiny", [f"text.encoder={word}"]).text.encoder == str(folder)
    assert not caplog.records
    assert load_config("cardialign-tiny", ["text.encoder=ncbi/MedCPT-Query-Encoder"]).text.encoder == str(folder)
    assert f"the folder {folder} is taken, not a model of that name" in caplog.text
    assert load_config("cardialign-tiny").text.encoder == "minilm" and "the shipped encoder is taken" in caplog.text
    assert load_config("cardialign-tiny", ["text.encoder=someone/elsewhere"]).text.encoder == "someone/elsewhere"
    assert load_config("cardialign-tiny", ["text.encoder=./absent"]).text.encoder == str(tmp_path / "absent")


def test_a_stored_run_means_the_pooling_that_its_path_gave_it() -> None:
    """Releases before `text.pooling` took the first token for a path with "medcpt" in it, else the mean."""

    def stored(word: str) -> str | None:
        text = {"encoder": word, "trainable": "frozen", "train_layers": 6, "max_tokens": 128, "style": "sentences"}
        return parse_config({"text": text}).text.pooling

    assert stored("/models/MedCPT-Query-Encoder") == "cls"
    assert stored("/models/clinical") == stored("emilyalsentzer/Bio_ClinicalBERT") == "mean"
    assert stored("minilm") is stored("ncbi/MedCPT-Query-Encoder") is None, "what the encoder itself says is the same"
    assert parse_config({"text": {"encoder": "/models/medcpt"}}).text.pooling is None, "a recipe is no stored run"


def test_more_layers_than_there_are_cannot_train(copy: Callable[..., Path]) -> None:
    text = {"encoder": str(copy()), "trainable": "partial", "train_layers": 3}
    with pytest.raises(UserError, match=r"text\.train_layers is 3, the report encoder has 2 layers"):
        TextTower(TextConfig.model_validate(text), 8)


def test_nothing_is_said_about_a_healthy_encoder(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "cardialign"):
        TextEncoder(TextConfig()).embed(REPORTS)
    assert not caplog.records


def test_a_run_stored_before_continues_where_its_pooling_is_what_the_model_says(
    copy: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    same, other = copy("same"), copy("other", **{"1_Pooling__config": {"pooling_mode": "cls"}})
    monkeypatch.chdir(tmp_path)
    for folder, changed in ((same, set()), (other, {"text.pooling"})):
        now = load_config("cardialign-tiny", [f"text.encoder=./{folder.name}"]).resolved()
        saved = json.loads(json.dumps(now))
        del saved["text"]["pooling"]
        saved["text"]["encoder"] = folder.name  # stored relative to where the command ran
        assert set(changed_keys(saved, now)) == changed
    said = load_config("cardialign-tiny", ["text.encoder=./same", "text.pooling=mean"]).resolved()
    silent = load_config("cardialign-tiny", ["text.encoder=./same"]).resolved()
    assert not changed_keys(silent, said), "said aloud now, it is what the model said before"


@pytest.mark.parametrize("inside", [False, True])
def test_a_folder_of_sentence_transformers_with_its_model_in_a_folder_of_its_own_is_the_same_encoder(
    copy: Callable[..., Path], tmp_path: Path, inside: bool
) -> None:
    pooling = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    flat = encoder(copy("flat", modules=modules("Transformer", "Pooling"), **{"1_Pooling__config": pooling}))
    whole = tmp_path / "older"
    shutil.copytree(flat.folder, whole / "0_Transformer", ignore=shutil.ignore_patterns("modules.json", "1_Pooling"))
    shutil.copytree(flat.folder / "1_Pooling", whole / "1_Pooling")
    listed = [{**each, "path": "0_Transformer" if each["type"].endswith("Transformer") else each["path"]}
              for each in modules("Transformer", "Pooling")]  # fmt: skip
    (whole / "modules.json").write_text(json.dumps(listed))
    older = encoder(whole / "0_Transformer" if inside else whole)
    assert older.pooling == flat.pooling == "cls"
    np.testing.assert_array_equal(older.embed(REPORTS), flat.embed(REPORTS))
