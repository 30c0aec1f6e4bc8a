"""The model card of an exported encoder, `README.md` in its folder: first what nothing in the folder can check.

Words of others act neither on Markdown nor on a terminal (`said`). The card of a registered version
(`cluster.registry.card`) is made of the same parts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cardialign.data_shards.shown import shown
from cardialign.pretrain.export.ages import OLDEST_YEARS
from cardialign.pretrain.export.given_signal import IMPLAUSIBLE_MV, IMPLAUSIBLY_FLAT_MV
from cardialign.pretrain.run.integrity import MISSING_PART

LICENCES = {
    "ptb-xl": "CC BY 4.0",
    "mimic-iv-ecg": "ODbL 1.0",
    "csn": "CC BY 4.0",
    "challenge": "CC BY 4.0",
    "code15": "CC BY 4.0",
}
"""Of sources that we read, as their publishers give them."""
INTENDED = (
    "Research on representations of 12-lead ECGs: features for probes and fine-tuning, retrieval, zero-shot ranking.",
    "Signals as the signal contract has them; what differs is refused, not guessed.",
)
LIMITS = (
    "Not a medical device. Not for diagnosis, triage or any decision on a patient.",
    "Figures hold for the records that they were measured on: another hospital, device or population, another figure.",
    "Scores rank records; they are no probabilities.",
)
FIGURES = (
    "None were measured when this folder was written. What was evaluated since stands in the registry, with intervals "
    "and with what of it was trained on (cardialign registry show NAME), and missing leads at the end of this page.",
)
LICENCE = (
    "Of the code that made it: Apache-2.0. Of the weights nothing is stated here: whoever exported them says, within "
    "the licences of the data above.",
)
CONTRACT_KEYS = ("leads", "sampling_rate", "units", "seconds", "samples", "normalisation", "embedding_dim")
"""Of a signal contract, what a consumer's signal must fit and what comes out."""
DOORS = """\
## how to load it

Nothing here is a pickle. In Python with this library, which runs nothing of this folder, compares rate, leads and units
and says what to do about the rest:

```python
import cardialign
encoder = cardialign.load_encoder("FOLDER")
embedding = encoder.embed(millivolts, sampling_rate={rate}{age_named})  # (B, 12, T)
```
{program}{onnx}
In scikit-learn, as the first step of a pipeline{ageless}:

```python
from cardialign.sklearn import EcgEmbedder
embedder = EcgEmbedder("FOLDER", sampling_rate={rate})
features = embedder.fit_transform(millivolts)
```

In transformers, by a folder or the name of a hub that has its files, without `trust_remote_code`:

```python
import cardialign.transformers
from transformers import AutoModel
embedding = AutoModel.from_pretrained("FOLDER")(millivolts, sampling_rate={rate}{age_named}).pooler_output
```

In MLflow, of a registered version; `mlflow models serve -m models:/NAME@ALIAS --env-manager local` serves the same:

```python
import mlflow
model = mlflow.pyfunc.load_model("models:/NAME@ALIAS")
embedding = model.predict(millivolts.astype("float32"), params={{"sampling_rate": {rate}{age_param}}})
```

## ten ECGs to hold it against

`golden.safetensors` has ten ECGs of virtual people: `signal` int16 (10, 12, T) in uV (-32768: no number), `lead_mask`,
`valid_samples`{age_tensor} and `embedding`, what must come out, to 1e-5. The last row is NaN: it must be refused.
`cardialign encoder check FOLDER` tries each way in that is here.
"""
PROGRAM_DOOR = """
With plain torch and nothing of ours (rows that are no ECG in mV come back as NaN). torch runs what a program says:
of a folder from somebody else run `cardialign encoder check FOLDER` first, which refuses one that is no plain program.

```python
import torch
program = torch.export.load("FOLDER/encoder.pt2").module()
embedding = program(signal, lead_mask, valid_samples{age})  # float32 mV (B, 12, T), bool (B, 12), int64 (B,)
```
"""
ONNX_DOOR = """
With onnxruntime, in Python or another language (rows that are no ECG in mV come back as NaN):

```python
import onnxruntime
session = onnxruntime.InferenceSession("FOLDER/encoder.onnx")
(embedding,) = session.run(None, {{"signal": signal, "lead_mask": lead_mask, "valid_samples": valid_samples{age}}})
```
"""


def what_it_is(config: Mapping[str, Any], provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Recipe, encoder, method and size, as far as an export says."""

    def name(kind: str) -> Any:
        return section(config, kind).get("name")

    training, parameters = section(provenance, "training"), section(provenance, "parameters")
    text, start = section(provenance, "text_encoder"), section(training, "init_from")
    return {
        "recipe": config.get("name"),
        "encoder": name("encoder"),
        "method": name("method"),
        "parameters": parameters.get("ecg_encoder"),
        "steps": training.get("steps"),
        "code_version": section(provenance, "versions").get("cardialign"),
        "text_encoder": text.get("encoder"),
        "started_from": {key: start[key] for key in ("asked", "name", "version", "digest") if key in start}
        or ("weights of its own folder" if start else "random weights"),
    }


def data_of(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """The sets that it was trained on, with their licences as published, and what is not known."""
    seen = section(provenance, "trained_on")
    sets = [each for each in seen.get("sets") or [] if isinstance(each, dict)]
    told = [
        {
            **{key: each.get(key) for key in ("source", "fingerprint", "records", "patients", "folds", "split")},
            "licence": LICENCES.get(str(each.get("source"))),
        }
        for each in sets
    ]
    unknown = [str(why) for why in seen.get("unknown") or []]
    return {"sets": told, "unknown": unknown or ([] if sets else ["the export does not say what it was trained on"])}


def section(values: Mapping[str, Any], key: str) -> dict[str, Any]:
    """The object under a key; of what is none an empty one."""
    found = values.get(key)
    return found if isinstance(found, dict) else {}


def said(value: Any) -> str:
    """A value for one cell or line of Markdown."""
    if value is None or value in ("", [], {}):
        return "not recorded"
    text = value if isinstance(value, str) else _plain(value)
    return re.sub(r"([\\`*_\[\]<>|#!~&])", r"\\\1", shown(text[:400]))


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple) and all(isinstance(each, str | int | float) for each in value):
        return ", ".join(map(str, value))
    return (
        json.dumps(value, sort_keys=True, ensure_ascii=False) if isinstance(value, dict | list | tuple) else str(value)
    )


def table(title: str, values: Mapping[str, Any]) -> Iterator[str]:
    yield from (f"## {title}", "", "| | |", "|---|---|")
    for key, value in values.items():
        yield f"| {said(key.replace('_', ' '))} | {said(value)} |"
    yield ""


def bullets(title: str, lines: Sequence[str]) -> Iterator[str]:
    yield from (f"## {title}", "", *(f"- {said(line)}" for line in lines), "")


def sets_table(data: Mapping[str, Any]) -> Iterator[str]:
    yield from ("## data", "")
    if data["sets"]:
        yield from (
            "| source | records | patients | chosen | fingerprint | licence as published |",
            "|---|---|---|---|---|---|",
        )
    for each in data["sets"]:
        chosen = (
            "all"
            if each["folds"] is None and each["split"] is None
            else {"folds": each["folds"], "split": each["split"]}
        )
        cells = (each["source"], each["records"], each["patients"], chosen, each["fingerprint"], each["licence"])
        yield f"| {' | '.join(map(said, cells))} |"
    yield from (f"- {said(why)}" for why in data["unknown"])
    yield ""


def model_card(
    config: Mapping[str, Any],
    contract: Mapping[str, Any],
    provenance: Mapping[str, Any],
    program: bool,
    onnx: bool = False,
) -> str:
    """The text of `README.md` for an export of these files; program, onnx: whether `encoder.pt2` and `encoder.onnx` are
    among them."""
    what = what_it_is(config, provenance)
    lines = [
        f"# ECG encoder {said(what['recipe'])}",
        "",
        *bullets("what nothing in this folder can check", _unchecked(contract)),
        *bullets("what is refused, by NaN in a program", _refused(contract)),
        *table("signal contract", {key: contract.get(key) for key in CONTRACT_KEYS}),
        *table("what it is", what),
        *sets_table(data_of(provenance)),
        *bullets("figures", FIGURES),
        *bullets("intended use", INTENDED),
        *bullets("limits", LIMITS),
        *bullets("licence", LICENCE),
        _doors(contract, program, onnx),
    ]
    return "\n".join(lines)


def _unchecked(contract: Mapping[str, Any]) -> list[str]:
    """Of a program that sees numbers alone."""
    rate, leads = f"{contract['sampling_rate']:g} Hz", ", ".join(contract["leads"])
    return [
        f"The sampling rate: {rate}, {contract['samples']} samples for {contract['seconds']:g} s. A signal of another "
        "rate has other heart rates and intervals, and its embedding looks as good.",
        f"Names, order and polarity of the leads: {leads}. Twelve rows in another order are another heart.",
        "Whether it is an ECG, in mV and as it was recorded: not filtered, not centred, not scaled. What spans as much "
        "as an ECG may is taken for one.",
        *(["Whose age was given, and that it is in years."] if contract.get("age") else []),
        "Whose ECG it is, and whether the encoder was trained on it (cardialign exposure prove answers that).",
    ]


def _refused(contract: Mapping[str, Any]) -> list[str]:
    ages = f"An age below 0 or above {OLDEST_YEARS:g} years; NaN says that it is not known."
    return [
        "A record with NaN or infinity in a sample that counts, or without a recorded lead or a valid sample.",
        f"A record with a lead that spans more than {IMPLAUSIBLE_MV:g} mV (microvolts, counts), or with none that "
        f"spans {1000 * IMPLAUSIBLY_FLAT_MV:g} uV (volts; flat leads alone). One flat lead among others is masked.",
        *([ages] if contract.get("age") else []),
        "A batch of another shape or type is an error. The other rows of a batch stay as they are.",
    ]


def _doors(contract: Mapping[str, Any], program: bool, onnx: bool) -> str:
    aged = bool(contract.get("age"))
    return DOORS.format(
        rate=f"{contract['sampling_rate']:.17g}",
        program=PROGRAM_DOOR.format(age=", age" if aged else "") if program else "",
        onnx=ONNX_DOOR.format(age=', "age": age' if aged else "") if onnx else "",
        age_named=", age=years" if aged else "",
        age_param=', "age": list(years)' if aged else "",
        age_tensor=", `age` in years" if aged else "",
        ageless=", without an age" if aged else "",
    )


def with_missing(card: bytes, on: str, points: Mapping[str, str]) -> bytes:
    """The card with what the encoder is worth without some leads at its end, in the place of what stands there."""
    lost = table(f"points of macro AUROC lost with leads missing, {said(on)}", points)
    return card.partition(MISSING_PART)[0] + b"\n".join([MISSING_PART, b"", *(line.encode() for line in lost)])
