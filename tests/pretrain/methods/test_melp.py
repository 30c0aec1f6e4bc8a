"""Each of the three losses by loops in float64, what a sentence is, and that it learns, on every topology."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from cardialign.data_shards.errors import UsageError, UserError
from cardialign.data_shards.order.contract import local_slice
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.data_shards.stream.batch import Batch
from cardialign.data_shards.text.bank import build_text_bank
from cardialign.pretrain.config import TextConfig, load_config
from cardialign.pretrain.export.loaded import load_encoder
from cardialign.pretrain.export.write import export_encoder
from cardialign.pretrain.methods.base import create_method
from cardialign.pretrain.methods.melp import Melp
from cardialign.pretrain.methods.melp.beats import Scales, beat_loss, sentence_cosines
from cardialign.pretrain.methods.melp.sentences import Borders, borders_of, next_words, sentences_of
from cardialign.pretrain.methods.melp.words import word_log_likelihoods
from cardialign.pretrain.methods.parts.draws import Draws
from cardialign.pretrain.text.encoder import TextEncoder
from cardialign.pretrain.training.checkpoints.load import load_weights
from cardialign.pretrain.training.initialise import initialise, open_start
from tests.support.learning import LearningData, learn, learning_data
from tests.support.processes import run_ranks
from tests.support.small_bert import write_small_bert
from tests.support.small_encoder import SPEC, small_config
from tests.support.tiny_shards import config_for, make_shards
from tests.support.topology import check_topologies, run_topologies

__all__ = ["learning_data"]

ENCODER = {
    "name": "conv_transformer",
    "width": 16,
    "depth": 1,
    "heads": 2,
    "channels": 8,
    "pooling": "queries",
    "queries": 3,
    "query_width": 16,
    "query_heads": 2,
    "embedding_dim": 8,
}
METHOD = {"name": "melp", "captions": 4, "width": 16, "depth": 1, "heads": 2}
SCALES = Scales(4.0, 5.0, 10.0)
REPORTS = [
    "Sinus rhythm. PR 0.12 s. Normal ECG.",
    "",
    "Sinus rhythm. PR 0.12 s. Normal ECG.",
    "Atrial fibrillation " * 9,
]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> TextConfig:
    folder = write_small_bert(tmp_path_factory.mktemp("encoders") / "bert", dropout=0.0)
    return TextConfig(encoder=str(folder), pooling="last", trainable="partial", train_layers=1, max_tokens=20)


class Bank:
    """Four reports: three sentences, none, the first again, and one that is cut."""

    def __init__(self, text: TextConfig) -> None:
        self.ids, self.lengths = TextEncoder(text).tokenize(REPORTS)
        self.embeddings = np.zeros((len(REPORTS), 16), np.float32)

    def tokens(self, report_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.ids[report_ids], self.lengths[report_ids]

    def report_keys(self, report_ids: np.ndarray) -> np.ndarray:
        return report_ids.astype(np.int64)


def make(text: TextConfig, **method: Any) -> Melp:
    torch.manual_seed(0)
    made = create_method(small_config(encoder=ENCODER, text=text.model_dump(), method={**METHOD, **method}), SPEC)
    assert isinstance(made, Melp)
    return made.eval()


def batch(rows: int = 4) -> Batch:
    signal = np.random.default_rng(0).normal(size=(rows, 12, 200)).astype(np.float32)
    at, mask, valid = np.arange(rows), np.ones((rows, 12), bool), np.full(rows, 200, np.int32)
    mask[0, 3], valid[2] = False, 90
    return Batch(1, at, signal, mask, valid, at % 4, np.zeros(rows, np.float32), np.zeros(rows, np.int8), at)


def unit(*shape: int, seed: int) -> Tensor:
    drawn = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.normalize(drawn, dim=-1).requires_grad_()


def slow_beats(views: Tensor, sentences: Tensor, counts: list[int]) -> Tensor:
    """The formulas of the beat level, one number after the other, of unit vectors."""
    B, Q = views.shape[:2]
    said = [j for j in range(B) if counts[j]]
    if not said:
        return torch.zeros((), dtype=torch.float64)
    match: dict[tuple[int, int], Tensor] = {}
    for i in range(B):
        for j in said:
            parts = []
            for s in range(counts[j]):
                word = sentences[j, s]
                weights = torch.stack([torch.exp(4 * views[i, k].dot(word)) for k in range(Q)])
                context = sum(weights[k] / weights.sum() * views[i, k] for k in range(Q))
                parts.append(torch.exp(5 * context.dot(word) / context.norm()))  # type: ignore
            match[i, j] = 10 * torch.log(sum(parts))  # type: ignore[arg-type]
    loss = torch.zeros((), dtype=torch.float64)
    for j in said:
        loss = loss - torch.log(torch.exp(match[j, j]) / sum(torch.exp(match[j, other]) for other in said))
        loss = loss - torch.log(torch.exp(match[j, j]) / sum(torch.exp(match[i, j]) for i in range(B)))
    return loss / (2 * len(said))


@pytest.mark.parametrize("counts", [[2, 3, 1, 2, 1], [2, 0, 3, 1, 0], [1], [0, 0]])
@pytest.mark.parametrize("chunk", [2, 100])
def test_the_beat_level_is_the_formula_with_empty_reports_duplicates_and_one_record(
    counts: list[int], chunk: int
) -> None:
    views, sentences = unit(len(counts), 4, 6, seed=1), unit(len(counts), 3, 6, seed=2)
    with torch.no_grad():
        if len(counts) > 3:
            sentences[3] = sentences[0]
    loss = beat_loss(views, sentences, torch.tensor(counts), SCALES, chunk)
    slow = slow_beats(views, sentences, counts)
    assert loss.item() == pytest.approx(slow.item(), rel=1e-9, abs=1e-12)
    found = torch.autograd.grad(loss, [views, sentences])
    if slow.requires_grad:
        for mine, wanted in zip(found, torch.autograd.grad(slow, [views, sentences], allow_unused=True), strict=True):
            assert wanted is not None
            torch.testing.assert_close(mine, wanted, rtol=1e-7, atol=1e-9)
    else:
        assert all(float(gradient.abs().max()) == 0 for gradient in found)


COUNTS = [2, 0, 3, 1, 2, 0, 1]


def beats_of_rank(rank: int, world: int) -> tuple[float, np.ndarray, np.ndarray]:
    rows = local_slice(len(COUNTS), rank, world)
    views, sentences = (each.detach()[rows].requires_grad_() for each in (unit(7, 4, 6, seed=1), unit(7, 3, 6, seed=2)))
    loss = beat_loss(views, sentences, torch.tensor(COUNTS)[rows], SCALES, 3)
    gradients = torch.autograd.grad(loss, [views, sentences])
    assert dist.get_world_size() == world
    return loss.item(), gradients[0].numpy(), gradients[1].numpy()


@pytest.mark.slow
@pytest.mark.processes
def test_the_beat_level_speaks_for_the_global_batch() -> None:
    """Two ranks, of which one has the larger part: value and gradients are those of one process."""
    views, sentences = unit(7, 4, 6, seed=1), unit(7, 3, 6, seed=2)
    whole = slow_beats(views, sentences, COUNTS)
    wanted = torch.autograd.grad(whole, [views, sentences])
    parts = run_ranks(2, beats_of_rank)
    for k in range(2):
        np.testing.assert_allclose(np.concatenate([p[k + 1] for p in parts]), wanted[k].numpy(), rtol=1e-7, atol=1e-9)
    assert [p[0] for p in parts] == pytest.approx([whole.item()] * 2, rel=1e-9)


def test_the_words_of_a_report_are_foretold_one_by_one(bert: TextConfig) -> None:
    method = make(bert).double()
    inputs = method.inputs(batch(), Bank(bert), Draws(0, 1, slice(0, 4)))
    given = {name: x.double() if x.is_floating_point() else x for name, x in inputs.items()}
    with torch.no_grad():
        features = method(given)
        caption = method.loss(features, given, None).metrics["caption_loss"]
        ecg = method.ecg(given["signal"], given["lead_mask"], given["valid_samples"], True)
        captions = method.levels.captioner.captions(ecg.tokens, ecg.token_mask)
        total, count, right = 0.0, 0, 0
        ids, mask = given["token_ids"].long(), given["token_mask"]
        for b in range(4):
            length = int(mask[b].sum())
            for n in range(length - 2):  # of [BOS] w1 ... wn [CLS], each w alone is asked for
                before = ids[b : b + 1, : n + 1]
                states = method.text.states(before, torch.ones_like(before, dtype=torch.bool))
                logits = method.levels.captioner(captions[b : b + 1], states, torch.arange(30522))[0, n].double()
                total -= float(logits[ids[b, n + 1]]) - float(torch.logsumexp(logits, 0))
                right += int(logits.argmax() == ids[b, n + 1])
                count += 1
    assert (
        count
        == sum(len(row) for row in TextEncoder(bert).tokenizer(REPORTS, add_special_tokens=False)["input_ids"][:3]) + 18
    )
    assert features["caption"][1].tolist() == [0, 0], "an empty report asks for nothing"
    assert caption.item() == pytest.approx(total / count, rel=1e-5)
    assert method.loss(features, given, None).metrics["word_accuracy"].item() == pytest.approx(right / count)


def test_likelihoods_by_hand_and_their_gradient() -> None:
    logits = torch.tensor([[[0.5, -1.0, 2.0], [1.0, 1.0, 1.0]]], dtype=torch.float64, requires_grad=True)
    found = word_log_likelihoods(logits, torch.tensor([[2, -100]]))
    exps = [math.exp(x) for x in (0.5, -1.0, 2.0)]
    np.testing.assert_allclose(found.detach().numpy(), [[math.log(exps[2] / sum(exps)), 0.0]], rtol=1e-12)
    found.sum().backward()
    assert logits.grad is not None
    wanted = [[-exps[0] / sum(exps), -exps[1] / sum(exps), 1 - exps[2] / sum(exps)], [0, 0, 0]]
    np.testing.assert_allclose(logits.grad[0].numpy(), wanted, atol=1e-12)


def test_the_loss_weighs_its_levels_as_published(bert: TextConfig) -> None:
    method = make(bert)
    features = {
        "ecg": unit(4, 8, seed=3),
        "text": unit(4, 8, seed=4),
        "views": unit(4, 3, 8, seed=5),
        "sentences": unit(4, 3, 8, seed=6),
        "caption": torch.tensor([[3.0, 2.0], [0, 0], [5.0, 4.0], [1.0, 1.0]], dtype=torch.float64),
        "hits": torch.tensor([[1.0, 2.0], [0, 0], [2.0, 4.0], [1.0, 1.0]], dtype=torch.float64),
        "log_scale": torch.tensor([1.3], dtype=torch.float64, requires_grad=True),
    }
    sentence = torch.tensor([[0, 0, 1], [-1, -1, -1], [0, 1, 2], [0, -1, -1]])
    loss, metrics, _ = method.loss(features, {"sentence": sentence, "report_key": torch.arange(4)}, None)
    logits = math.exp(1.3) * features["ecg"] @ features["text"].T
    rhythm = torch.zeros((), dtype=torch.float64)
    for i in range(4):
        rhythm = rhythm - (2 * logits[i, i] - torch.logsumexp(logits[i], 0) - torch.logsumexp(logits[:, i], 0)) / 8
    beats = slow_beats(features["views"], features["sentences"], [2, 0, 3, 1])
    assert loss.item() == pytest.approx((rhythm + 2.0 * 9 / 7 + 0.2 * beats).item(), rel=1e-6)
    assert metrics["word_accuracy"].item() == pytest.approx(4 / 7)
    assert metrics["temperature"].item() == pytest.approx(math.exp(-1.3), rel=1e-5)


def test_gradient_reaches_every_part_that_trains(bert: TextConfig) -> None:
    method = make(bert, words="occurring").train()
    inputs = method.inputs(batch(), Bank(bert), Draws(0, 1, slice(0, 4)))
    inputs["lead_mask"] = torch.rand(4, 12, generator=torch.Generator().manual_seed(0)) > 0.5
    method.loss(method(inputs), inputs, None).loss.backward()
    silent = [
        n for n, p in method.named_parameters() if p.requires_grad and (p.grad is None or p.grad.abs().max() == 0)
    ]
    assert all("bias" in name and "key" in name for name in silent), silent  # a bias of all keys changes no softmax


def test_sentences_end_at_full_stops_but_not_inside_numbers(bert: TextConfig) -> None:
    encoder = TextEncoder(bert)
    borders = borders_of(encoder)
    ids, lengths = encoder.tokenize(["PR 0.12 s. Sinus rhythm! Pacing?. Axis 9", "", "One", "Sinus rhythm. " * 20])
    found = sentences_of(ids, lengths, borders)
    words = [encoder.tokenizer.convert_ids_to_tokens(row.tolist()) for row in ids]
    parts = [[w for w, s in zip(words[0], found[0], strict=True) if s == k] for k in range(4)]
    assert parts == [
        ["pr", "0", ".", "12", "s", "."],
        ["sin", "##us", "rhythm", "!"],
        ["pacing", "?", "."],
        ["axis", "9"],
    ]
    assert found[0].max() == 3 and (found[1] == -1).all() and found[2].max() == 0
    assert found[3, 1:19].tolist() == [n // 4 for n in range(18)], "what was cut is the last sentence"
    assert found[3, 0] == found[3, 19] == -1
    plain = Borders(np.array([False, True]), np.array([False, False]))
    assert sentences_of(np.array([[0, 1, 0, 0]]), np.array([4]), plain).tolist() == [[-1, 0, 1, -1]]


def test_only_words_of_the_reports_are_asked_for_where_the_recipe_says_so(bert: TextConfig) -> None:
    bank, methods = Bank(bert), {words: make(bert, words=words) for words in ("occurring", "all")}
    made = {w: m.inputs(batch(), bank, Draws(0, 1, slice(0, 4))) for w, m in methods.items()}
    said = sorted({int(x) for row, n in zip(bank.ids, bank.lengths, strict=True) for x in row[1 : n - 1]})
    few = methods["occurring"]
    assert few._asked.tolist() == said and few.levels.captioner.occurs.sum() == len(said)
    asked = made["occurring"]["following"]
    assert torch.equal(few._asked[asked[asked >= 0]], made["all"]["following"][asked >= 0])
    assert torch.equal(asked >= 0, torch.from_numpy(next_words(bank.ids, bank.lengths)[:, : asked.shape[1]] >= 0))


def test_sentence_cosines_look_where_the_sentence_points() -> None:
    views = torch.eye(3, dtype=torch.float64)[None]
    toward = sentence_cosines(views, views, beat_scale=50.0)[0, 0]
    torch.testing.assert_close(toward, torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-12)
    even = sentence_cosines(views, views, beat_scale=0.0)[0, 0]
    torch.testing.assert_close(even, torch.full((3,), 3**-0.5, dtype=torch.float64))


@pytest.mark.parametrize(
    ("encoder", "text", "problem", "remedy"),
    [
        ({}, {"pooling": "cls"}, "text.pooling is cls", "set text.pooling to last"),
        ({"pooling": "mean"}, {}, "makes none as it is set", "encoder.pooling to queries"),
    ],
)
def test_what_it_cannot_read_is_refused_with_the_way_out(
    bert: TextConfig, encoder: dict[str, Any], text: dict[str, Any], problem: str, remedy: str
) -> None:
    config = small_config(encoder={**ENCODER, **encoder}, text={**bert.model_dump(), **text}, method=METHOD)
    with pytest.raises(UsageError, match=problem) as caught:
        create_method(config, SPEC)
    assert remedy in caught.value.remedy
    with pytest.raises(UsageError, match=r"method melp trains the report encoder, and text.trainable is frozen"):
        small_config(encoder=ENCODER, text={**bert.model_dump(), "trainable": "frozen"}, method=METHOD)


def test_it_starts_from_a_signal_only_run_whose_encoder_pools_otherwise(bert: TextConfig, tmp_path: Path) -> None:
    """What the convolutions and the transformer have learnt is taken; the views, and their projection, start fresh."""
    own = {"encoder": ENCODER, "text": bert.model_dump(), "method": METHOD}
    before = small_config(encoder={**ENCODER, "pooling": "mean"}, method={"name": "simclr"})
    source = export_encoder(
        before, create_method(before, SPEC).state_dict(), tmp_path / "encoder", training={}, spec=SPEC, program=False
    )
    method, start = make(bert), open_start(source)
    with pytest.raises(UserError, match=r"encoder\.pooling is 'queries', the source was trained with 'mean'") as caught:
        initialise(method, small_config(**own, init_from=str(source)), start)
    assert "init_fresh: [ecg.pool., ecg.projection.]" in caught.value.remedy
    with pytest.raises(UserError, match=r"ecg\.pool\.queries .*not in the source"):
        initialise(method, small_config(**own, init_from=str(source), init_fresh=["ecg.projection."]), start)
    fresh = ["ecg.pool.", "ecg.projection."]
    result = initialise(method, small_config(**own, init_from=str(source), init_fresh=fresh), start)
    assert {name for name in result.fresh if name.startswith("ecg.")} == {
        name for name in method.state_dict() if name.startswith(tuple(fresh))
    }
    weights = load_file(source / "model.safetensors")
    assert torch.equal(method.state_dict()["ecg.temporal.norm.weight"], weights["temporal.norm.weight"])
    assert torch.equal(method.state_dict()["ecg.to_tokens.linear.weight"], weights["to_tokens.linear.weight"])
    other = {**own, "encoder": {**ENCODER, "convolutions": 3}}
    with pytest.raises(UserError, match=r"encoder\.convolutions is 3, the source was trained with 4"):
        initialise(method, small_config(**other, init_from=str(source), init_fresh=fresh), start)


TEXTS = ["Sinus rhythm", "Atrial fibrillation. Left bundle branch block", "Normal ECG"]


def test_the_levels_leave_with_the_encoder_and_are_the_sum_of_three_figures(bert: TextConfig, tmp_path: Path) -> None:
    method = make(bert, words="occurring")
    bank = Bank(bert)
    method.inputs(batch(), bank, Draws(0, 1, slice(0, 4)))
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    config = small_config(encoder=ENCODER, text=bert.model_dump(), method={**METHOD, "words": "occurring"})
    export_encoder(config, method.state_dict(), tmp_path / "encoder", training={}, spec=SPEC, program=False)
    encoder = load_encoder(tmp_path / "encoder")
    assert encoder.scorings == ("cosine", "levels")
    signal = batch().signal[:2]
    found = encoder.class_scores(signal, TEXTS, sampling_rate=100, scoring="levels")
    said = {int(x) for row, n in zip(bank.ids, bank.lengths, strict=True) for x in row[1 : n - 1]}
    asked, ids = torch.tensor(sorted(said)), TextEncoder(bert).tokenize(TEXTS)
    with torch.no_grad():
        ecg = method.ecg(torch.from_numpy(signal), torch.ones(2, 12, dtype=torch.bool), None, True)
        captions = method.levels.captioner.captions(ecg.tokens, ecg.token_mask)
        for j, (row, length) in enumerate(zip(*ids, strict=True)):
            words = torch.from_numpy(row[None, :length]).long()
            states = method.text.states(words, torch.ones_like(words, dtype=torch.bool))
            vectors = method.text.head(F.normalize(states[:, -1], dim=-1))[0]
            ends = [0, *[n for n in range(1, length - 1) if row[n] == 1012 or n == length - 2]]
            sentences = [states[0, a + 1 : b + 1].mean(dim=0) for a, b in pairwise(ends)]
            for i in range(2):
                score = float(ecg.embedding[i] @ vectors)
                for mean in sentences:
                    word = method.text.head(F.normalize(mean, dim=0)[None])[0]
                    weights = torch.softmax(4 * ecg.views[i] @ word, dim=0)
                    score += float(F.cosine_similarity(weights @ ecg.views[i], word, dim=0)) / len(sentences)
                logs = method.levels.captioner(captions[i : i + 1], states, asked)[0].log_softmax(dim=-1)
                known = [n for n in range(length - 2) if int(row[n + 1]) in said]
                likely = [float(logs[n, int((asked == int(row[n + 1])).nonzero())]) for n in known]
                score += math.exp(sum(likely) / len(likely)) if likely else 0.0
                assert found[i, j] == pytest.approx(score, abs=1e-5), (i, j)
    untrained = encoder.untrained(3)
    assert untrained.class_scores(signal, TEXTS, sampling_rate=100, scoring="levels").shape == (2, 3)


@pytest.mark.parametrize("recipe", ["melp", "melp-published"])
def test_the_recipes_are_the_publication_where_they_say_so(recipe: str) -> None:
    config = load_config(recipe)
    method = config.method.model_dump()
    assert [method[f"{level}_weight"] for level in ("rhythm", "caption", "beat")] == [1.0, 2.0, 0.2]
    assert [method[f"{part}_scale"] for part in ("beat", "sentence", "match")] == [4.0, 5.0, 10.0]
    if recipe == "melp-published":
        assert (method["captions"], method["width"], method["depth"], method["heads"]) == (128, 768, 6, 8)
        assert (config.optimizer.lr, config.optimizer.weight_decay, config.training.global_batch) == (2e-4, 0.2, 256)
        assert (config.training.lead_dropout, config.data.normalisation) == (0.5, "minmax")


@pytest.mark.slow
@pytest.mark.processes
def test_a_step_is_the_same_on_every_topology(tmp_path: Path, bert: TextConfig) -> None:
    shards = make_shards(tmp_path / "shards")
    build_text_bank(ShardSet.open(shards), TextEncoder(bert))
    values = config_for(shards).resolved()
    run_topologies({**values, "encoder": ENCODER, "text": bert.model_dump(), "method": METHOD}, tmp_path)
    figures = ["loss", "rhythm_loss", "caption_loss", "beat_loss", "grad_norm"]
    check_topologies(tmp_path, figures, rtol=2e-4)


def unseen_batch(shards: ShardSet, count: int) -> Batch:
    rows = np.flatnonzero(shards.report >= 0)[:count]
    signal = np.stack([shards.read_record(int(row)).millivolts() for row in rows])
    mask, valid = np.ones((count, 12), bool), np.full(count, signal.shape[2], np.int32)
    blank = np.zeros(count, np.float32), np.zeros(count, np.int8)
    return Batch(1, rows, signal, mask, valid, shards.report[rows], *blank, rows)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_it_learns_what_the_reports_say_and_foretells_their_words_from_the_ecg(
    learning_data: LearningData, tmp_path: Path
) -> None:
    folder = write_small_bert(tmp_path / "bert", dropout=0.0, width=64)
    text = {"encoder": str(folder), "pooling": "last", "trainable": "full", "max_tokens": 40}
    build_text_bank(ShardSet.open(learning_data.shards), TextEncoder(TextConfig.model_validate(text)))
    small = {"width": 64, "depth": 1, "heads": 2, "channels": 32, "convolutions": 4}  # of 160 ms at 100 Hz
    sections = {"text": text, "encoder": small, "method": {"width": 64, "depth": 1}}
    changes: dict[str, Any] = {f"{name}.{key}": value for name, own in sections.items() for key, value in own.items()}
    changes |= {"training.epochs": 18, "training.checkpoint_every": 1000, "optimizer.lr": 3e-3}  # both towers are new
    learnt = learn("melp", learning_data, tmp_path / "run", changes, deadline=600)
    assert learnt.zero_shot.difference.low > 0.2
    method = create_method(learnt.encoder.config, learnt.encoder.contract.spec).eval()
    method.load_state_dict(load_weights(max((tmp_path / "run" / "checkpoints").glob("step-*"))))
    bank = build_text_bank(learnt.unseen, TextEncoder(learnt.encoder.config.text), tmp_path / "bank")
    inputs = method.inputs(unseen_batch(learnt.unseen, 96), bank, Draws(0, 0, slice(0, 96)))
    with torch.no_grad():
        own = method.loss(method(inputs), inputs, None).metrics
        inputs["signal"] = inputs["signal"].roll(1, dims=0)
        other = method.loss(method(inputs), inputs, None).metrics
    asked = inputs["following"][inputs["following"] >= 0]
    unigram = float(torch.bincount(asked).max() / len(asked))
    assert own["word_accuracy"] > 2 * unigram
    assert own["caption_loss"] < 0.95 * other["caption_loss"], "another record's ECG says less about the words"
