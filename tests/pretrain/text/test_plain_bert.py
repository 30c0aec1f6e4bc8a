"""BERT without its library is the library's: the same weights give the same states, and a step counts the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from cardialign.data_shards.files import read_json
from cardialign.pretrain.benchmarks.footprint import Footprint, count_footprint
from cardialign.pretrain.config import TextConfig
from cardialign.pretrain.text import encoder as text_encoder
from cardialign.pretrain.text.encoder import TextEncoder, read_tokens
from cardialign.pretrain.text.plain_bert import PlainBert, is_plain
from tests.support.small_bert import write_small_bert
from tests.support.small_encoder import SPEC, small_config

WRITTEN = {"model_type": "bert", "hidden_size": 768, "num_attention_heads": 12, "position_embedding_type": "absolute"}


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_published_weights_give_the_published_states(minilm: TextEncoder, pooling: str) -> None:
    published = minilm.transformer
    ours = PlainBert(minilm.model_config).eval()
    ours.load_state_dict(published.state_dict())  # by the same names, none left over
    ids, lengths = minilm.tokenize(["Sinus rhythm.", "Acute anterior infarct, with left bundle branch block"])
    tokens = torch.from_numpy(ids)
    mask = torch.arange(tokens.shape[1])[None, :] < torch.from_numpy(lengths)[:, None]
    with torch.no_grad():
        found, wanted = (read_tokens(model, tokens, mask, pooling) for model in (ours, published))
    torch.testing.assert_close(found[mask], wanted[mask], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("device", "precision"), [("cuda", "bf16"), ("cpu", "fp32")])
@pytest.mark.parametrize(
    "text",
    [
        {"trainable": "full"},
        {"trainable": "partial", "train_layers": 1},
        {"trainable": "partial", "train_layers": 2, "pooling": "last"},
    ],
)
def test_a_step_counts_as_with_the_library(
    text: dict[str, Any], device: str, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_small_bert(tmp_path / "bert")
    config = small_config(text={"encoder": str(folder), "max_tokens": 32, **text}, method={"name": "siglip"})
    config = config.model_copy(update={"training": config.training.model_copy(update={"precision": precision})})

    def counted() -> Footprint:
        return count_footprint(config, SPEC, device, micro_batch=16, local_rows=32)

    assert is_plain(read_json(folder / "config.json") or {}), "else this would compare the library with itself"
    ours = counted()
    monkeypatch.setattr(text_encoder, "is_plain", lambda config: False)
    theirs = counted()
    # masks: the library takes half a dozen steps to one, of some bytes
    rounded = {"forward_moved": 0, "saved_bytes": 0, "activation_bytes": 0, "joint_bytes": 0}
    assert ours._replace(**rounded) == theirs._replace(**rounded)
    for name in rounded:
        assert getattr(ours, name) == pytest.approx(getattr(theirs, name), rel=1e-3), name


@pytest.mark.parametrize(
    "others",
    [
        {"hidden_act": "relu"}, {"position_embedding_type": "relative_key"}, {"hidden_size": 770}, {"model_type": "t5"},
        {"a_key_of_next_year": 1}, {"torch_dtype": "float16"}, {"is_decoder": True}, {"num_hidden_layers": "12"},
        {"vocab_size": -1}, {"pad_token_id": None}, {"num_attention_heads": 0}, {"hidden_dropout_prob": 2},
    ],
)  # fmt: skip
def test_what_is_not_known_here_is_left_to_the_library(others: dict[str, Any]) -> None:
    assert is_plain(WRITTEN) and not is_plain({**WRITTEN, **others})


def test_a_shape_needs_no_library_and_another_kind_of_model_still_does(tmp_path: Path) -> None:
    with torch.device("meta"):
        assert isinstance(TextEncoder(TextConfig()).load_transformer(), PlainBert)
        (tmp_path / "config.json").write_text('{"model_type": "bert", "hidden_act": "relu"}')
        told = TextEncoder(TextConfig(encoder=str(tmp_path))).load_transformer()
    assert type(told).__module__.startswith("transformers.")
