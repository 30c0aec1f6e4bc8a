"""An exported encoder as MLflow calls it: `mlflow.pyfunc.load_model`, `mlflow models serve`.

MLflow imports the loader that `MLmodel` names (`cardialign.mlflow`, of the installed package) and gives it the folder:
nothing in the folder is executed or unpickled. What is asked of a signal is what the library asks, in its words.
Neither Ray nor DeepSpeed is needed, nor MLflow itself until something is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cardialign.data_shards.errors import UsageError, UserError
from cardialign.pretrain.export.given_signal import CONVERSIONS, SignalForm
from cardialign.pretrain.export.loaded import LoadedEncoder, load_encoder

RATE, UNITS, LEADS, ALLOW, AGE = "sampling_rate", "units", "leads", "allow", "age"
"""Parameters of a prediction. Those that are lists are empty where nothing is said."""


class ServedEncoder:
    """predict: ECGs (n, L, T) in `units` -> float32 (n, e), unit rows.

    params: sampling_rate in Hz, which must be given; units "mV" or "uV"; leads, names of the second axis (default: the
    standard twelve in their usual order); allow, words of `CONVERSIONS`; age, one in years per record, NaN = not known,
    for an encoder that reads it. Raises MlflowException, a bad request, with the problem and the remedy.
    """

    def __init__(self, encoder: LoadedEncoder) -> None:
        self.encoder = encoder

    def predict(self, data: Any, params: Mapping[str, Any] | None = None) -> np.ndarray:
        try:
            return self._embed(data, dict(params or {}))
        except UserError as error:
            from mlflow.exceptions import MlflowException

            raise MlflowException.invalid_parameter_value(
                f"{error.problem}; {_in_words_of_here(error.remedy)}"
            ) from error

    def _embed(self, data: Any, params: dict[str, Any]) -> np.ndarray:
        signal = np.asanyarray(data)  # a masked array stays one, which `embed` refuses
        if signal.ndim != 3 or signal.dtype == object:
            raise UsageError(
                f"the input has shape {signal.shape}: not ECGs x leads x samples",
                "give an array (n, leads, samples); ECGs of different lengths one by one",
            )
        if params.get(RATE) is None:
            raise UsageError(
                f"nothing says the {RATE} of the ECGs", f'give it beside them: params={{"{RATE}": RATE_IN_HZ}}'
            )
        return self.encoder.embed(signal, sampling_rate=float(params[RATE]), **_form(params))


def _form(params: Mapping[str, Any]) -> SignalForm:
    allow = list(params.get(ALLOW) or [])
    if unknown := [str(word) for word in allow if word not in CONVERSIONS]:
        raise UsageError(f"{ALLOW} has {', '.join(unknown)[:120]}", f"give some of {', '.join(CONVERSIONS)}")
    form: dict[str, Any] = {UNITS: params.get(UNITS) or "mV", **dict.fromkeys(allow, True)}
    if leads := list(params.get(LEADS) or []):
        form[LEADS] = leads
    if ages := list(params.get(AGE) or []):
        form[AGE] = [None if each is None or np.isnan(each) else float(each) for each in ages]
    return form  # type: ignore[return-value]


def _in_words_of_here(remedy: str) -> str:
    """Remedies name arguments of `embed`; a conversion is allowed by its word in `allow` here."""
    for word in CONVERSIONS:
        remedy = remedy.replace(f"{word}=True", f'params={{"{ALLOW}": ["{word}"]}}')
    return remedy


def load_served(path: str) -> ServedEncoder:
    """What MLflow calls with the folder that it fetched. Raises UserError for one that is not as it was written."""
    return ServedEncoder(load_encoder(Path(path)))
