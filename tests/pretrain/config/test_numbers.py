"""No number of a configuration, of any section, encoder or method, starts a run that it cannot serve."""

from __future__ import annotations

import contextlib
import math
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pytest
import torch

from cardialign.data_shards.errors import UsageError
from cardialign.pretrain.benchmarks.noise import NoiseBank, noise_batch
from cardialign.pretrain.choices import ENCODERS, METHODS
from cardialign.pretrain.config import RunConfig, Strict, parse_config
from cardialign.pretrain.methods.base import create_method
from cardialign.pretrain.methods.parts.draws import Draws
from tests.support.small_bert import write_small_bert
from tests.support.small_encoder import SPEC


class Number(NamedTuple):
    """A numeric field: its section's other values, its dotted path, its type and its ends."""

    base: dict[str, Any]
    path: tuple[str, ...]
    kind: type
    low: float | None
    high: float | None

    def set(self, value: Any) -> dict[str, Any]:
        """A configuration that differs from the base in this field alone."""
        return typing.cast("dict[str, Any]", _set(self.base, self.path, value))


def _set(values: Any, path: tuple[str, ...], value: Any) -> Any:
    if not path:
        return value
    first, *rest = path
    if first.isdecimal():
        return [_set(old, tuple(rest), value) if i == int(first) else old for i, old in enumerate(values)]
    return {**values, first: _set(values.get(first, {}), tuple(rest), value)}


def _leaves(annotation: Any, ends: tuple[Any, ...], path: tuple[str, ...]) -> Iterator[tuple[Any, ...]]:
    """(path, type, least, most) of every number in an annotation."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        more = tuple(each for extra in inner[1:] for each in getattr(extra, "metadata", [extra]))
        yield from _leaves(inner[0], (*ends, *more), path)
    elif origin in (typing.Union, types.UnionType):
        for part in inner:
            yield from _leaves(part, ends, path)
    elif origin is tuple:
        for i, part in enumerate(inner):
            if part is not ...:
                yield from _leaves(part, (), (*path, str(i)))
    elif origin is Literal:
        return
    elif annotation in (int, float):
        found = {name: getattr(end, name) for end in ends for name in ("ge", "gt", "le", "lt") if hasattr(end, name)}
        yield path, annotation, found.get("ge", found.get("gt")), found.get("le", found.get("lt"))
    elif isinstance(annotation, type) and issubclass(annotation, Strict):
        for name, field in annotation.model_fields.items():
            yield from _leaves(field.annotation, tuple(field.metadata), (*path, name))


SMALL: dict[str, dict[str, Any]] = {
    "beat_transformer": {"width": 8, "depth": 1, "heads": 2, "embedding_dim": 8},
    "cardialign": {"size": "tiny", "width": 16, "depth": 1, "heads": 2, "embedding_dim": 8,
                   "patches": [{"kernel_ms": 100, "stride_ms": 100}]},
    "vit1d": {"width": 16, "depth": 1, "heads": 2, "embedding_dim": 8, "patches": "lead"},
    "conv_transformer": {"width": 16, "depth": 1, "heads": 2, "channels": 8, "embedding_dim": 8},
    "resnet1d": {"width": 8, "heads": 2, "embedding_dim": 8},
    "s4": {"width": 8, "depth": 1, "heads": 2, "embedding_dim": 8},
    "time_spectrum": {"width": 8, "depth": 1, "heads": 2, "patch_ms": 100, "embedding_dim": 8},
}  # fmt: skip
TRAINING = {"steps": 2, "global_batch": 8, "precision": "fp32"}


LEARNS = {"encoder": "minilm", "trainable": "partial", "train_layers": 1, "max_tokens": 8}
"""Of a method whose report encoder trains."""
NARROW = {"width": 8, "depth": 1, "heads": 2}
NEEDS: dict[str, dict[str, Any]] = {
    "cpc": {"encoder": {"name": "s4", "direction": "forward", "token_ms": 200}, "method": {"steps": 2, "negatives": 3}},
    "astcl": {"method": {"hidden_dim": 8, "projection_dim": 8}},
    "barlow_twins": {"method": {"projection_dim": 8}},
    "byol": {"method": {"hidden_dim": 8, "projection_dim": 8}},
    "crt": {
        "encoder": {"name": "time_spectrum"},
        "method": {f"decoder_{key}": n for key, n in NARROW.items()},
    },
    "jepa": {"encoder": {"name": "vit1d"}, "method": {f"predictor_{key}": n for key, n in NARROW.items()}},
    "heartlang": {
        "encoder": {"name": "beat_transformer"},
        "method": {"words": 5, "code_width": 4, "quantiser": {"name": "beat_transformer", **NARROW}},
    },
    "heartlang_quantiser": {
        "encoder": {"name": "beat_transformer"},
        "method": {"words": 5, "code_width": 4, **{f"decoder_{key}": n for key, n in NARROW.items()}},
    },
    "moco_v3": {"method": {"hidden_dim": 8, "projection_dim": 8}},
    "simsiam": {"method": {"projection_dim": 8, "predictor_dim": 4}},
    "ts_tcc": {
        "encoder": {"name": "resnet1d"},
        "method": {**NARROW, "hidden": 8, "projection_dim": 4, "steps": 2, "strong": {"pieces": 2}},
    },
    "wav2vec2_cmsc": {
        "encoder": {"name": "conv_transformer"},
        "method": {"words": 3, "code_width": 4, "target_width": 4, "negatives": 2, "mask_span": 2},
    },
    "st_mem": {"encoder": {"name": "vit1d"}, "method": {f"decoder_{key}": n for key, n in NARROW.items()}},
    "melp": {
        "encoder": {"name": "conv_transformer", "pooling": "queries", "query_width": 16, "queries": 2},
        "method": {**NARROW, "captions": 2, "words": "occurring"},
        "text": {**LEARNS, "pooling": "last"},
    },
    "d_beta": {
        "encoder": {"name": "conv_transformer", "pooling": "cls", "pooler": "tanh"},
        "method": {**NARROW, **{f"decoder_{key}": n for key, n in NARROW.items()}, "decoder_from": 1, "distant": 2},
        "text": LEARNS,
    },
}
"""What a method wants of the sections beside its own, and what keeps its own small."""


def _base(encoder: str = "cardialign", method: str = "siglip") -> dict[str, Any]:
    needs = NEEDS.get(method, {})
    about = {"name": encoder, **needs.get("encoder", {})}
    made = {
        "encoder": {**SMALL[about["name"]], **about},
        "method": {"name": method, **needs.get("method", {})},
        "training": TRAINING,
    }
    return {**made, "text": needs["text"]} if "text" in needs else made


def _numbers() -> Iterator[Number]:
    shards = {"mixture": [{"shards": "/a"}, {"shards": "/b"}], "folds": [1], "split_fractions": [0.8, 0.1, 0.1]}
    beside = {"folds": [9], "probe_folds": [8]}
    whole = {**_base(), "data": shards, "optimizer": {"betas": [0.9, 0.98]}, "evaluation": beside}
    for name, field in RunConfig.model_fields.items():
        if name not in ("encoder", "method"):
            for leaf in _leaves(field.annotation, tuple(field.metadata), (name,)):
                base = {**whole, "data": {**shards, "mixture": [{"shards": "/a", "folds": [1]}, {"shards": "/b"}]}}
                yield Number(base, *leaf)
    for name in ENCODERS.own:
        base = _base(name, "st_mem" if name == "vit1d" else "siglip")
        yield from (Number(base, *leaf) for leaf in _leaves(ENCODERS.find(name).Config, (), ("encoder",)))
    for name in METHODS.own:
        base = _base(method=name)
        yield from (Number(base, *leaf) for leaf in _leaves(METHODS.find(name).Config, (), ("method",)))


NUMBERS = list(_numbers())
NO_NUMBERS = (math.nan, math.inf, -math.inf, 10**30, -(10**30), 10**5000, True)


def _name(number: Number) -> str:
    return f"{number.base[number.path[0]]['name']}.{'.'.join(number.path)}" if number.path[0] in (
        "encoder", "method") else ".".join(number.path)  # fmt: skip


def test_the_walk_finds_every_section() -> None:
    found = {_name(number) for number in NUMBERS}
    assert {"seed", "optimizer.betas.1", "data.mixture.0.weight", "data.folds.0", "text.max_tokens"} <= found
    assert {
        "cardialign.encoder.patches.0.kernel_ms",
        "simclr.method.views.noise_mv",
        "st_mem.method.mask_ratio",
    } <= found
    assert len(found) > 70


@pytest.mark.parametrize("number", NUMBERS, ids=_name)
def test_what_is_no_number_of_a_run_is_refused_by_its_name(number: Number) -> None:
    parse_config(number.base)
    for value in NO_NUMBERS:
        with pytest.raises(UsageError) as caught:
            parse_config(number.set(value))
        assert ".".join(number.path).rstrip(".0123456789") in caught.value.problem, value
        assert len(caught.value.problem) < 1000


@pytest.mark.parametrize("number", NUMBERS, ids=_name)
def test_every_number_has_two_ends_and_what_lies_outside_is_refused_by_its_name(number: Number) -> None:
    assert number.low is not None and number.high is not None
    step = max(1, abs(number.high) // 2)
    for value in (number.low - 1, number.high + step):
        with pytest.raises(UsageError, match=r"\.".join(number.path)):
            parse_config(number.set(number.kind(value)))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_bert(tmp_path_factory.mktemp("encoders") / "bert")


def _loss_after_one_step(config: RunConfig, bert: Path) -> float:
    if config.method.trains_reports:
        config = config.model_copy(update={"text": config.text.model_copy(update={"encoder": str(bert)})})
    torch.manual_seed(0)
    method = create_method(config, SPEC).train()
    draws = Draws(0, 0, slice(0, 8))
    inputs = method.inputs(noise_batch(config, SPEC, 8), NoiseBank(config, 8) if method.reports else None, draws)
    optimizer = torch.optim.AdamW(
        method.parameters(), lr=config.optimizer.lr, betas=config.optimizer.betas, eps=config.optimizer.eps,
        weight_decay=config.optimizer.weight_decay,
    )  # fmt: skip
    method.loss(method(inputs), inputs, None).loss.backward()
    limit = config.optimizer.grad_clip or math.inf
    torch.nn.utils.clip_grad_norm_(method.parameters(), limit)
    optimizer.step()
    return float(method.loss(method(inputs), inputs, None).loss.detach())


TRIED = [number for number in NUMBERS if number.kind is float and number.path[0] in ("optimizer", "encoder", "method")]


@pytest.mark.parametrize("number", TRIED, ids=_name)
def test_the_ends_of_a_number_train_or_are_refused(number: Number, bert: Path) -> None:
    """What the text of a section takes must serve: the loss of the second step is finite."""
    assert number.low is not None and number.high is not None
    values = [number.low, np.nextafter(number.low, math.inf), number.high, np.nextafter(number.high, -math.inf)]
    trains_reports = number.base["method"]["name"] in ("melp", "d_beta")  # loading a report encoder takes most of it
    for value in values[::2] if trains_reports else values:
        with contextlib.suppress(UsageError):
            assert math.isfinite(_loss_after_one_step(parse_config(number.set(float(value))), bert)), value
