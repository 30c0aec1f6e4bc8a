"""D-BETA by its formulas, written out in loops; what is hidden, and which reports are exchanged for which."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cardialign.data_shards.errors import DataError, UsageError, UserError
from cardialign.data_shards.record import SignalSpec
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.data_shards.stream.batch import Batch
from cardialign.data_shards.text.bank import build_text_bank
from cardialign.data_shards.text.distant import build_distant
from cardialign.kernels.contrastive import ets
from cardialign.pretrain.config import RunConfig, TextConfig, load_config, parse_config
from cardialign.pretrain.encoders.conv_transformer import ConvTransformer
from cardialign.pretrain.methods.base import create_method
from cardialign.pretrain.methods.d_beta.heads import mask_token_of
from cardialign.pretrain.methods.d_beta.method import DBeta
from cardialign.pretrain.methods.parts.draws import Draws
from cardialign.pretrain.text.encoder import TextEncoder
from cardialign.pretrain.text.tower import TanhHead
from tests.support.learning import LearningData, learn, learning_data
from tests.support.small_bert import write_small_bert, write_small_t5
from tests.support.small_encoder import SPEC
from tests.support.tiny_shards import config_for, make_shards
from tests.support.topology import check_topologies, run_topologies, trace

__all__ = ["learning_data"]

B, K = 5, 8
ENCODER = {
    "name": "conv_transformer",
    "width": 16,
    "depth": 1,
    "heads": 2,
    "channels": 8,
    "convolutions": 3,
    "position_kernel": 4,
    "position_groups": 2,
    "pooling": "cls",
    "pooler": "tanh",
    "embedding_dim": 8,
}
METHOD = {
    "name": "d_beta",
    "width": 16,
    "depth": 2,
    "heads": 2,
    "dropout": 0.0,
    "decoder_width": 8,
    "decoder_depth": 1,
    "decoder_heads": 2,
    "decoder_from": 1,
    "distant": 2,
}
TOKENS = SPEC.samples // K


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_bert(tmp_path_factory.mktemp("text") / "bert", dropout=0.0)


def config_of(folder: Path, **changes: Any) -> RunConfig:
    return parse_config(
        {
            "encoder": {**ENCODER, **changes.get("encoder", {})},
            "text": {"encoder": str(folder), "pooling": "cls", "trainable": "full", "max_tokens": 12}
            | changes.get("text", {}),
            "method": {**METHOD, **changes.get("method", {})},
            "training": {"steps": 1, "global_batch": 8},
        }
    )


def make(folder: Path, **changes: Any) -> DBeta:
    torch.manual_seed(0)
    made = create_method(config_of(folder, **changes), SPEC)
    assert isinstance(made, DBeta)
    return made.eval()


def batch(reports: list[int]) -> Batch:
    """Record 1 lacks leads, record 2 is padded behind 95 samples: 11 whole tokens of 8."""
    generator, rows = np.random.default_rng(0), np.arange(len(reports))
    mask = np.ones((len(rows), 12), dtype=bool)
    mask[1:2, 4:] = False
    valid = np.full(len(rows), SPEC.samples, dtype=np.int32)
    valid[2:3] = 95
    signal = generator.normal(size=(len(rows), 12, SPEC.samples)).astype(np.float32)
    signal *= mask[:, :, None] * (np.arange(SPEC.samples) < valid[:, None])[:, None]
    return Batch(
        1, rows, signal, mask, valid, np.array(reports), np.zeros(len(rows), np.float32), np.zeros(len(rows)), rows
    )


class Bank:
    """Six reports of a small BERT: the first is empty but for its special tokens, the last two are the same."""

    reports = ("", "sinus rhythm", "atrial fibrillation", "left bundle branch block", "normal ecg", "normal ecg")

    def __init__(self, folder: Path) -> None:
        self.encoder = TextEncoder(TextConfig(encoder=str(folder), pooling="cls", max_tokens=12))
        self.ids, self.lengths = self.encoder.tokenize(list(self.reports))
        self.embeddings = np.zeros((len(self.reports), 4))
        self.table = np.array([[(i + 2) % 6, (i + 3) % 6] for i in range(6)], dtype=np.int32)

    def tokens(self, report_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.ids[report_ids], self.lengths[report_ids]

    def distant(self, k: int) -> np.ndarray:
        return self.table[:, :k]


def inputs_of(method: DBeta, bank: Bank, reports: list[int], step: int = 1) -> dict[str, Tensor]:
    return method.inputs(batch(reports), bank, Draws(0, step, slice(0, len(reports))))  # type: ignore[arg-type]


def test_a_replaced_report_is_one_of_the_most_distant_and_its_words_are_hidden_afterwards(bert: Path) -> None:
    method, bank = make(bert), Bank(bert)
    own = [0, 1, 2, 3, 4, 5, 1, 2] * 12
    found = inputs_of(method, bank, own)
    aligned = found["aligned"].numpy()
    assert 0.35 < aligned.mean() < 0.65
    hiding = method.words.mask
    for row, report in enumerate(own):
        read = found["token_ids"][row].numpy().copy()
        asked = found["asked"][row] != -100
        at = found["asked_at"][row][asked]
        assert (read[at] == hiding).all() and (read == hiding).sum() == len(at)
        read[at] = found["asked"][row][asked]  # what was hidden, put back
        words = read[found["token_mask"][row].numpy()]
        texts = [report] if aligned[row] else bank.table[report].tolist()
        fitting = [bank.ids[one][: bank.lengths[one]] for one in texts]
        assert any(np.array_equal(words, one) for one in fitting), (row, report)
    counted = found["asked"] != -100
    specials = torch.isin(found["asked"][counted], torch.from_numpy(method.words.special))
    assert not specials.any(), "a special token is never hidden"
    words = (found["token_mask"].sum(1) - 2).sum()
    assert 0.15 < counted.sum() / words < 0.35
    assert len({tuple(row.tolist()) for row in found["kept"]}) > 80, "every record has tokens of its own"


def test_what_is_hidden_does_not_depend_on_who_else_is_on_the_rank(bert: Path) -> None:
    method, bank = make(bert), Bank(bert)
    own = [1, 3, 2, 4, 5]
    whole = inputs_of(method, bank, own)
    given = batch(own)
    two = Batch(*(each[3:] if isinstance(each, np.ndarray) else each for each in vars(given).values()))
    rest = method.inputs(two, bank, Draws(0, 1, slice(3, 5)))  # type: ignore[arg-type]
    for name in ("kept", "hidden", "aligned"):
        assert torch.equal(rest[name], whole[name][3:]), name
    n = rest["token_ids"].shape[1]
    assert torch.equal(rest["token_ids"], whole["token_ids"][3:, :n])


def test_three_quarters_of_the_tokens_are_taken_out_and_only_recorded_ones_are_asked_for(bert: Path) -> None:
    method = make(bert)
    found = inputs_of(method, Bank(bert), [1, 2, 3, 4, 5])
    kept, hidden = found["kept"], found["hidden"]
    assert kept.shape == (5, int(TOKENS * 0.25)) and (kept.diff(dim=1) > 0).all()
    assert (hidden[[0, 1, 3, 4]].sum(1) == TOKENS - kept.shape[1]).all()
    assert not hidden[2, 95 // K :].any() and (kept[2] < 95 // K).all(), "95 samples are recorded: 11 whole tokens"
    assert hidden[2].sum() == 95 // K - kept.shape[1]
    assert not hidden.gather(1, kept).any()


LEARNING = (
    "ecg.to_tokens.linear.weight",
    "ecg.first.token",
    "ecg.projection.weight",
    "text.transformer.encoder.layer.0.output.dense.weight",
    "text.head.linear.weight",
    "fused.kind.weight",
    "fused.text_layers.0.cross.value.weight",
    "fused.ecg_layers.1.cross.key.weight",
    "fused.aligned.weight",
    "mlm.out.bias",
    "mem.blocks.norm.weight",
    "mem.mask_token",
)


def test_losses_and_gradients_are_those_of_the_formulas(bert: Path) -> None:
    """Each term in float64, record by record, word by word and token by token; an empty report, missing leads and
    padding are there, and two records have the same report."""
    method, bank = make(bert).double(), Bank(bert)
    given = inputs_of(method, bank, [0, 1, 3, 4, 5], step=2)
    given["signal"] = given["signal"].double()
    features = method(given)
    value = method.loss(features, given, None)
    assert given["aligned"].any() and not given["aligned"].all() and (given["asked"] != -100).any()
    assert (features["ecg"].abs() < 1).all() and not torch.allclose(features["ecg"].norm(dim=1), torch.ones(B))
    by_hand = _by_hand(method, given)
    for name, wanted in {**by_hand, "loss": torch.stack(list(by_hand.values())).sum()}.items():
        assert float(value.metrics[name]) == pytest.approx(float(wanted.detach()), rel=2e-6), name
    parameters = dict(method.named_parameters())
    asked = [parameters[name] for name in LEARNING]
    found = torch.autograd.grad(value.loss, asked)
    expected = torch.autograd.grad(sum(by_hand.values(), torch.zeros(())), asked)
    for name, one, other in zip(LEARNING, found, expected, strict=True):
        assert other.abs().max() > 1e-5, name
        torch.testing.assert_close(one, other, rtol=1e-4, atol=float(other.abs().max()) * 1e-4, msg=name)


def _by_hand(method: DBeta, given: dict[str, Tensor]) -> dict[str, Tensor]:
    """The four losses, from the states of the encoders and the co-attention."""
    errors: dict[str, list[Tensor]] = {"mlm": [], "mem": [], "etm": []}
    xs, ts = [], []
    for row in range(B):
        one = {name: tensor[row : row + 1] for name, tensor in given.items()}
        ids = one["token_ids"][:, one["token_mask"][0]]
        assert method.text.transformer is not None and isinstance(method.text.head, TanhHead)
        words = method.text.transformer(input_ids=ids.long()).last_hidden_state
        patches = method.ecg.embed_patches(one["signal"], one["lead_mask"], one["valid_samples"])
        states = method.ecg.encode_patches(patches.keep(one["kept"]))
        fused = method.fused.fuse(states, None, words, None)
        for place, word in zip(one["asked_at"][0].tolist(), one["asked"][0].tolist(), strict=True):
            if word != -100:
                logits = method.mlm(fused.text[:, place : place + 1])[0, 0]
                errors["mlm"].append(logits.exp().sum().log() - logits[word])
        pair = fused.aligned[0]
        errors["etm"].append(pair.exp().sum().log() - pair[int(one["aligned"][0])])
        decoded = method.mem(fused.early_ecg[:, 1:], one["kept"], patches.seconds)[0]
        whole = one["signal"][0, :, : min(int(given["valid_samples"][row]), TOKENS * K)]
        mean, spread = whole.mean(dim=1), (whole.var(dim=1, unbiased=False) + 1e-6).sqrt()
        for token in range(TOKENS):
            if not one["hidden"][0, token]:
                continue
            wrong = []
            for lead in range(12):
                if not one["lead_mask"][0, lead]:
                    continue
                for k in range(K):
                    wanted = (whole[lead, token * K + k] - mean[lead]) / spread[lead]
                    wrong.append((decoded[token, lead * K + k] - wanted) ** 2)
            errors["mem"].append(torch.stack(wrong).mean())
        head, first = method.text.head, words[0, 0] / words[0, 0].norm()
        normed = (first - first.mean()) / (first.var(unbiased=False) + head.norm.eps).sqrt()
        ts.append(torch.tanh(head.linear.weight @ (normed * head.norm.weight + head.norm.bias) + head.linear.bias))
        xs.append(torch.tanh(method.ecg.projection.weight @ states[0, 0] + method.ecg.projection.bias))
    ets = []
    for i in range(B):
        for j in range(B):
            y = 1.0 if i == j and given["aligned"][i] else -1.0
            ets.append(-torch.log(1 / (1 + torch.exp(-y * (xs[i] @ ts[j])))) / B**2)
    return {**{name: torch.stack(each).mean() for name, each in errors.items()}, "ets": torch.stack(ets).sum()}


def test_one_record_and_a_batch_without_hidden_words_have_finite_losses(bert: Path) -> None:
    method = make(bert, method={"hidden_words": 0.0})
    given = inputs_of(method, Bank(bert), [0])
    value = method.loss(method(given), given, None)
    assert math.isfinite(float(value.loss.detach())) and float(value.metrics["mlm"]) == 0
    assert not torch.cat([each.flatten() for each in method(given).values()]).isnan().any()


@pytest.mark.parametrize("target", ["lead", "token", "plain"])
def test_a_target_is_normalised_over_what_it_says(bert: Path, target: str) -> None:
    method = make(bert, method={"target": target})
    given = inputs_of(method, Bank(bert), [1, 2, 3, 4, 5])
    found, signal = method._targets(given)[0].double(), given["signal"][0].double()
    axes = {"lead": (0, 2), "token": (1, 2)}.get(target)
    if axes is None:
        assert torch.allclose(found[3, 2], signal[2, 3 * K : 4 * K])
        return
    assert torch.allclose(found.mean(dim=axes), torch.zeros(()).double(), atol=1e-5)
    assert torch.allclose(found.var(dim=axes, unbiased=False), torch.ones(()).double(), atol=1e-3)


def test_a_t5_hides_words_behind_its_first_sentinel(tmp_path: Path, bert: Path) -> None:
    folder = write_small_t5(tmp_path / "t5")
    encoder = TextEncoder(TextConfig(encoder=str(folder), max_tokens=12))
    assert encoder.tokenizer.mask_token is None
    assert mask_token_of(encoder, None) == encoder.tokenizer.convert_tokens_to_ids("<extra_id_0>")
    assert mask_token_of(TextEncoder(TextConfig(encoder=str(bert), pooling="cls", max_tokens=12)), None) == 103
    method = make(folder, text={"pooling": None})
    ids, lengths = encoder.tokenize(["sinus rhythm", "normal ecg"])
    hidden = method._hide_words(ids, np.arange(ids.shape[1]) < lengths[:, None], Draws(0, 3, slice(0, 2)))
    features = method.text.states(hidden["token_ids"], hidden["token_mask"])
    assert features.shape == (2, ids.shape[1], 16)


def test_what_cannot_be_trained_is_refused_with_the_remedy(bert: Path, tmp_path: Path) -> None:
    maskless = write_small_t5(tmp_path / "maskless", sentinels=0)
    cases: list[tuple[Path, dict[str, Any], type[UserError], str, str]] = [
        (bert, {"encoder": {"pooler": "linear"}}, UsageError, "encoder.pooler is linear", "encoder.pooler to tanh"),
        (bert, {"method": {"hidden_tokens": 0.99}}, UsageError, "leaves none of the 25 tokens", "lower it"),
        (maskless, {}, UserError, "no mask token", "set method.mask_token"),
        (bert, {"method": {"mask_token": "[NOPE]"}}, UserError, r"no token \[NOPE\]", "of its vocabulary"),
    ]
    for folder, changes, kind, problem, remedy in cases:
        with pytest.raises(kind, match=problem) as raised:
            make(folder, **changes)
        assert remedy in raised.value.remedy
    for key, value in (("distant", 100_000), ("replaced", 1.0), ("hidden_words", 1.0)):
        with pytest.raises(UsageError, match=rf"method\.{key}: input should be less than or equal to"):
            config_of(bert, method={key: value})
    with pytest.raises(UsageError, match=r"text\.trainable is frozen; set it to full, or to partial"):
        config_of(bert, text={"trainable": "frozen"})
    assert make(maskless, method={"mask_token": "ecg"}).words.mask == 6
    with pytest.raises(UsageError, match="encoder vit1d has none"):
        create_method(
            parse_config(
                {**config_of(bert).model_dump(mode="json"), "encoder": {"name": "vit1d", "width": 16, "heads": 2}}
            ),
            SPEC,
        )
    bank = Bank(bert)
    bank.table = np.zeros((6, 0), dtype=np.int32)
    with pytest.raises(DataError, match="but one report"):
        inputs_of(make(bert), bank, [1, 2])


def test_a_step_of_the_small_recipe_moves_the_products_of_pairs_about_as_far_as_they_have_to_go() -> None:
    """31 of 32 pairs are none: a model that knows nothing gives each of them -ln 31. A step that throws products past
    that several times over drives the features of all records into one direction (16.3 at 512 numbers and 1e-3)."""
    config = load_config("d-beta", [])
    torch.manual_seed(1)
    encoder = ConvTransformer(config.encoder, SignalSpec(100, 10))  # type: ignore[arg-type]
    head = TanhHead(384, config.encoder.embedding_dim)
    rows = config.training.global_batch
    signal, words = 0.3 * torch.randn(rows, 12, 1000), torch.randn(rows, 384)  # mV; pooled words, before a LayerNorm
    adam = torch.optim.AdamW([*encoder.parameters(), *head.parameters()], config.optimizer.lr, config.optimizer.betas)
    products = []
    for _ in range(2):
        features = encoder(signal, torch.ones(rows, 12, dtype=torch.bool)).features
        ecg, text = encoder.project(features), head.features(words)
        ets(ecg, text, torch.arange(rows) % 2 == 0).backward()
        adam.step()
        products.append((ecg @ text.T).detach())
    assert float((products[1] - products[0]).abs().mean()) < 1.5 * math.log(31)


@pytest.mark.slow
@pytest.mark.processes
def test_a_step_is_the_same_on_every_topology(bert: Path, tmp_path: Path) -> None:
    shards = make_shards(tmp_path / "shards")
    values = {**config_for(shards).resolved(), **{key: config_of(bert).resolved()[key] for key in ("encoder", "text")}}
    build_distant(build_text_bank(ShardSet.open(shards), TextEncoder(config_of(bert).text)), METHOD["distant"])
    run_topologies({**values, "method": METHOD}, tmp_path)
    check_topologies(tmp_path, ["loss", "mlm", "mem", "etm", "ets", "grad_norm"], rtol=2e-4)


LEARNS = {
    "encoder.width": 64,
    "encoder.depth": 1,
    "encoder.heads": 2,
    "encoder.position_kernel": 16,
    "encoder.pooling": "mean",
    "encoder.embedding_dim": 64,
    "text.pooling": "mean",
    "text.trainable": "full",
    "method.hidden_tokens": 0.25,
    "method.width": 64,
    "method.depth": 1,
    "method.decoder_width": 48,
    "method.decoder_heads": 2,
    "optimizer.lr": 2e-3,
    "training.global_batch": 16,
    "training.epochs": 9,
    "training.lead_dropout": 0.0,
}


@pytest.mark.slow
def test_it_learns_what_the_reports_say_and_tells_pairs_from_distant_ones(
    learning_data: LearningData, tmp_path: Path
) -> None:
    """With a T5 of random weights, whose words are hidden behind a sentinel: a few hundred pairs, 40 CPU-s."""
    shards = ShardSet.open(learning_data.shards)
    said = " ".join(" ".join(each) for each in shards.reports.column("statements").to_pylist())
    folder = write_small_t5(tmp_path / "t5", words=sorted(set(re.findall(r"\w+|[^\w\s]", said.lower()))), width=64)
    text = TextConfig(encoder=str(folder), max_tokens=64)
    build_distant(build_text_bank(shards, TextEncoder(text)), 64)
    learnt = learn("d-beta", learning_data, tmp_path / "run", {**LEARNS, "text.encoder": str(folder)})
    ahead = learnt.zero_shot.difference
    assert ahead.low > 0.2, f"ahead of its untrained self by {ahead.value:.3f} ({ahead.low:.3f} to {ahead.high:.3f})"
    right = trace(learnt.run_dir, "etm_accuracy")[-100:]
    assert np.mean(right) > 0.5 + 4 * 0.5 / math.sqrt(16 * len(right)), f"pairs told rightly: {np.mean(right):.3f}"
