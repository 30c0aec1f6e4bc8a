"""What an encoder of somebody else takes and gives, as its user states it in a YAML file beside it.

A wrong rate, order of leads or unit gives embeddings that look fine and mean nothing, and no file of weights says which
are right. So each is stated, none has a default, and what contradicts another is refused by name.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from cardialign.data_shards.errors import UsageError, UserError
from cardialign.data_shards.files import read_text
from cardialign.data_shards.record import STANDARD_LEADS, SignalSpec
from cardialign.pretrain.config.fields import Positive, Strict
from cardialign.pretrain.config.sentences import sentences
from cardialign.pretrain.export.contract import SignalContract

SUFFIX = ".contract.yaml"
EXAMPLE = """\
sampling_rate: 500        # Hz
seconds: 10               # of one input
shorter: zeros            # a shorter signal: zeros (filled up at its end) or refuse
leads: [I, II, III, aVR, aVL, aVF, V1, V2, V3, V4, V5, V6]   # in the model's own order
missing_leads: zeros      # a lead that was not recorded: zeros or refuse
units: mV                 # mV, uV, or normalised
normalisation: none       # none, centred (each lead), minmax (record to 0..1), zscore (record), lead-std (each lead)
filter: none              # or {high_pass: 0.67, low_pass: 40, order: 3}, Butterworth without delay; applied here
layout: leads-time        # leads-time (B, L, T), time-leads (B, T, L) or leads-concatenated (B, L*T)
dtype: float32            # float32, float16 or float64
output: only              # only, the number of one of several outputs, or its name
pooling: none             # none, first, mean or max over all axes but the features'
embedding_dim: 512        # what comes out
trained_on: unknown       # or a list: [mimic-iv-ecg, ptb-xl]
"""
"""A contract in full; where pooling is not none, `feature_axis: last` or `second` says where the features lie."""


class Filter(Strict):
    """Butterworth, forwards and backwards: `order` is that of one pass. high_pass, low_pass in Hz."""

    high_pass: Annotated[float, Field(gt=0, le=1e4)] | None = None
    low_pass: Annotated[float, Field(gt=0, le=1e4)] | None = None
    order: Annotated[int, Field(gt=0, le=10)]

    @model_validator(mode="after")
    def _some(self) -> Filter:
        if self.high_pass is None and self.low_pass is None:
            raise ValueError("neither high_pass nor low_pass; give one, or write `filter: none`")
        if self.high_pass is not None and self.low_pass is not None and self.high_pass >= self.low_pass:
            raise ValueError(f"high_pass {self.high_pass:g} is not below low_pass {self.low_pass:g}; nothing is left")
        return self


class OutsideContract(Strict):
    """The keys of `EXAMPLE`. What is done to a signal is done in this order: resampled, filtered, cut or filled up,
    leads put in order, unit, normalisation, layout.

    input: name of the model's argument (Hugging Face), or of its input where an ONNX file has several.
    call: name of a method that is called instead of the model itself (Hugging Face, TorchScript).
    text: name of a method that turns token ids into vectors beside the embeddings (Hugging Face), of at most
    `text_tokens` tokens.
    blocks: dotted name of the list of repeated layers, for fine-tuning by layers.
    """

    sampling_rate: Annotated[float, Field(gt=0, le=1e6)]
    seconds: Annotated[float, Field(gt=0, le=86_400)]
    shorter: Literal["zeros", "refuse"]
    leads: tuple[str, ...]
    missing_leads: Literal["zeros", "refuse"]
    units: Literal["mV", "uV", "normalised"]
    normalisation: Literal["none", "centred", "minmax", "zscore", "lead-std"]
    filter: Filter | Literal["none"]
    layout: Literal["leads-time", "time-leads", "leads-concatenated"]
    dtype: Literal["float32", "float16", "float64"]
    output: str | Annotated[int, Field(ge=0, le=1000)]
    pooling: Literal["none", "first", "mean", "max"]
    embedding_dim: Positive
    trained_on: tuple[str, ...] | Literal["unknown"]
    feature_axis: Literal["last", "second"] | None = None
    input: str | None = None
    call: str | None = None
    text: str | None = None
    text_tokens: Positive | None = None
    blocks: str | None = None

    @field_validator("leads")
    @classmethod
    def _known_leads(cls, leads: tuple[str, ...]) -> tuple[str, ...]:
        names = {lead.casefold(): lead for lead in STANDARD_LEADS}
        unknown = [lead for lead in leads if lead.strip().casefold() not in names]
        if unknown or not leads:
            raise ValueError(f"{', '.join(unknown) or 'none'}: name leads among {', '.join(STANDARD_LEADS)}")
        found = tuple(names[lead.strip().casefold()] for lead in leads)
        if len(set(found)) != len(found):
            raise ValueError("a lead is named twice; name each once, in the model's order")
        return found

    @model_validator(mode="after")
    def _agrees(self) -> OutsideContract:
        wrong = []
        if (self.units == "normalised") != (self.normalisation != "none"):
            wrong.append(
                f"units is {self.units} and normalisation {self.normalisation}; a normalised signal has no unit: "
                "write `units: normalised` with a normalisation, mV or uV with `normalisation: none`"
            )
        if (self.pooling == "none") != (self.feature_axis is None):
            wrong.append(
                f"pooling is {self.pooling} and feature_axis {self.feature_axis or 'not given'}; "
                "say feature_axis (last or second) where something is pooled, and only there"
            )
        if (self.text is None) != (self.text_tokens is None):
            wrong.append("text and text_tokens belong together; give both or neither")
        if abs(self.spec.samples - self.sampling_rate * self.seconds) > 1e-6:
            wrong.append(
                f"sampling_rate {self.sampling_rate:g} times seconds {self.seconds:g} is no whole number of samples; "
                "give seconds as samples divided by the rate"
            )
        if self.filter != "none":
            assert isinstance(self.filter, Filter)
            edge = max(self.filter.high_pass or 0, self.filter.low_pass or 0)
            if edge >= self.sampling_rate / 2:
                wrong.append(f"filter at {edge:g} Hz needs a sampling_rate above {2 * edge:g}; correct one of them")
        if wrong:
            raise ValueError("\n".join(wrong))
        return self

    @property
    def spec(self) -> SignalSpec:
        return SignalSpec(self.sampling_rate, self.seconds)

    @property
    def standard(self) -> SignalContract:
        """Rate and length with the twelve leads in mV: what a signal is brought to first."""
        return SignalContract.of(self.spec, "none", self.embedding_dim, 0.0)

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()


def contract_beside(path: Path) -> Path:
    """`encoder.onnx` -> `encoder.onnx.contract.yaml`; of a folder beside it, not in it."""
    return path.with_name(f"{path.name}{SUFFIX}")


def read_contract(path: Path, about: str) -> OutsideContract:
    """The contract in file `path` of the encoder `about`.

    Raises UserError when it is not there, with one to fill in; UsageError naming every mistake in it at once.
    """
    try:
        text = read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise UserError(
            f"{about} has no signal contract that can be read: {path}: {reason}",
            f"write what it was trained on into {path.name}, nothing is guessed:\n{EXAMPLE}",
        ) from None
    from cardialign.pretrain.config.yaml_text import read_yaml  # who opens an encoder of ours needs no yaml

    values: Any = read_yaml(text, f"signal contract {path}")
    if not isinstance(values, dict):
        raise UsageError(f"signal contract {path} holds no keys", f"write what it was trained on:\n{EXAMPLE}")
    try:
        return OutsideContract.model_validate(values)
    except ValidationError as error:
        lines = sentences(error, OutsideContract, {})
        lines = [line.removeprefix("(recipe): ") for line in lines]
        raise UsageError(
            f"signal contract {path}:\n" + "\n".join(f"  - {line}" for line in lines),
            "state them as the encoder was trained; nothing is guessed",
        ) from None
