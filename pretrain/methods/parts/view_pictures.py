"""The two views of a record as a method makes them, beside the record, and in words what was drawn for each."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
from torch import Tensor

from cardialign.data_shards.errors import UsageError
from cardialign.data_shards.record import STANDARD_LEADS, EcgRecord, SignalSpec
from cardialign.data_shards.signal.side_by_side import Panel
from cardialign.data_shards.stream.batch import Batch
from cardialign.pretrain.choices import METHODS
from cardialign.pretrain.config import RunConfig
from cardialign.pretrain.methods.base import create_method, method_class
from cardialign.pretrain.methods.parts.draws import Draws
from cardialign.pretrain.methods.parts.two_views import VIEWS, TwoViews
from cardialign.pretrain.methods.parts.views import viewed

_SEX = {None: 0, "female": 1, "male": 2}
_COUNTS = 32_000  # of the int16 that a drawn view is kept in


def panels_of_views(config: RunConfig, record: EcgRecord, spec: SignalSpec, steps: int = 2) -> list[list[Panel]]:
    """For each of the first steps a row: the record (once, then the recipe's settings) and its two views.

    A view is drawn as for the record that stands first in the batch of the step. Raises UsageError for a recipe whose
    method makes no two views.
    """
    cls = method_class(config)
    if not issubclass(cls, TwoViews):
        known = ", ".join(name for name in METHODS.own if issubclass(METHODS.find(name), TwoViews))
        raise UsageError(
            f"recipe {config.name}: its method {config.method.name} makes no two views of a record",
            f"name a recipe of a method that does: {known} (`cardialign methods list` names their recipes)",
        )
    method = create_method(config, spec)
    assert isinstance(method, TwoViews)
    limits = [
        f"{view} view: " + ", ".join(f"{name} {_number(value)}" for name, value in method.views_of(view))
        for view in VIEWS
    ]
    limits.append("Views are drawn as for the record that stands first in the batch of a step. Grey leads are hidden.")
    about = f"{record.valid_samples / spec.sampling_rate:.4g} s at {spec.sampling_rate:g} Hz"
    rows = []
    for step in range(steps):
        inputs = method.inputs(_batch_of(record, step), None, Draws(config.seed, step, slice(0, 1)))
        made = [
            Panel(_viewed(record, inputs, view), f"Step {step}, {view} view", view_words(inputs, view, record))
            for view in VIEWS
        ]
        first = (
            Panel(None, f"As far as recipe {config.name} lets a view go (method.views)", limits)
            if step
            else Panel(record, "The record itself", [about])
        )
        rows.append([first, *made])
    return rows


def _batch_of(record: EcgRecord, step: int) -> Batch:
    """A batch of this record alone."""
    none = np.full(1, -1)
    age = np.nan if record.age_years is None else record.age_years
    return Batch(
        step=step,
        rows=np.zeros(1, dtype=np.int64),
        signal=record.millivolts()[None],
        lead_mask=record.lead_mask[None].copy(),
        valid_samples=np.array([record.valid_samples], dtype=np.int32),
        report=none,
        age_years=np.array([age], dtype=np.float32),
        sex=np.array([_SEX.get(record.sex, 0)], dtype=np.int8),
        global_rows=np.zeros(1, dtype=np.int64),
        global_report=none,
    )


def _viewed(record: EcgRecord, inputs: Mapping[str, Tensor], view: str) -> EcgRecord:
    """The view as a record, to the 1/1000 mV, or what int16 holds of its highest voltage."""
    signal, leads, valid = (each[0].numpy() for each in viewed(inputs["signal"], inputs, view))
    gain = min(1000.0, _COUNTS / max(float(np.abs(signal).max(initial=0.0)), 1e-3))
    return dataclasses.replace(
        record,
        counts=np.round(signal * gain).astype(np.int16),
        gain=np.full(len(signal), gain, dtype=np.float32),
        lead_mask=leads,
        valid_samples=int(valid),
    )


def view_words(drawn: Mapping[str, Tensor], view: str, record: EcgRecord) -> list[str]:
    """What `view_draws` drew for the first row, one change a line, with units; record: what the view is made of."""
    given = {
        name.removeprefix(f"{view} "): each[0].numpy() for name, each in drawn.items() if name.startswith(f"{view} ")
    }
    rate, shown = record.sampling_rate, given["leads"]
    words = [f"scale {given['scale']:.2f}", *_when(given, record.valid_samples, rate)]
    if "wander" in given:
        height, cycles, _ = given["wander"]
        slow, fast = (cycles[shown].min() * rate, cycles[shown].max() * rate) if shown.any() else (0.0, 0.0)
        words.append(f"wander up to {_most(height, shown):.2f} mV, {slow:.2f} to {fast:.2f} Hz, each lead its own")
    if "hum" in given:
        hertz, most = given["hum"][0] * rate, _most(given["hum"][2:], shown)
        words.append(
            f"hum {hertz:.0f} Hz, up to {most:.3f} mV" if most else f"no hum: {rate:g} Hz cannot hold {hertz:.0f} Hz"
        )
    if "noise" in given:
        words.append(f"noise {given['noise']:.3f} mV (standard deviation)")
    if "flat" in given and given["flat"][1]:
        first, count = given["flat"] / rate
        words.append(f"flat from {first:.2f} to {first + count:.2f} s")
    hidden = [
        name for name, was, still in zip(STANDARD_LEADS, record.lead_mask, shown, strict=True) if was and not still
    ]
    return [*words, f"leads hidden: {', '.join(hidden) or 'none'}"]


def _most(heights: np.ndarray, shown: np.ndarray) -> float:
    """The largest height of the leads that are shown."""
    return float(heights[shown].max(initial=0.0))


def _when(given: Mapping[str, np.ndarray], valid: int, rate: float) -> list[str]:
    """Which stretch of the record the view shows, and in which order."""
    length, start = int(given["length"]), int(given["start"])
    window, words = int(given.get("window", length)), []
    if window == valid:
        words.append("the whole record")
    else:
        words.append(f"{start / rate:.2f} to {(start + window) / rate:.2f} s of the record")
    if window != length:
        words[-1] += f", stretched to {length / rate:.2f} s: {length / window:.2f} times slower"
    if given["ahead"]:
        words.append(f"begins {int(given['ahead']) / rate:.2f} s later, and goes on from the beginning")
    if "pieces" in given:
        places, stood = given["pieces"]
        stood = stood[np.diff(places, append=length) > 0]
        order = stood.argsort().argsort() + 1
        words.append(
            f"cut into {len(order)}, in the order {' '.join(map(str, order))}" if len(order) > 1 else "not cut"
        )
    return words


def _number(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).lower()
