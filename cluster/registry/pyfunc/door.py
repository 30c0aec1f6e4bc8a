"""MLflow's way into an exported encoder, as `encoder check` tries it: with no registry, by the files of one."""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path

import numpy as np

from cardialign.cluster.registry.pyfunc.mlmodel import write_mlmodel
from cardialign.cluster.registry.pyfunc.served import AGE, ALLOW, LEADS, RATE
from cardialign.data_shards.errors import UserError
from cardialign.data_shards.record import STANDARD_LEADS
from cardialign.pretrain.export.doors.check import Asked, ClosedError

MLFLOW = "MLflow"


def through_mlflow(asked: Asked) -> np.ndarray:
    """A `Way` of `pretrain.export.doors.check`."""
    if importlib.util.find_spec("mlflow") is None:
        raise ClosedError("MLflow is not installed")
    import mlflow.pyfunc
    from mlflow.exceptions import MlflowException

    with tempfile.TemporaryDirectory(prefix="mlmodel-") as scratch:
        write_mlmodel(asked.parts.folder, Path(scratch), beside=False)
        model = mlflow.pyfunc.load_model(scratch, suppress_warnings=True)

    def embed(k: int) -> np.ndarray:
        leads, signal = asked.recorded(k)
        params = {RATE: float(asked.contract.sampling_rate), LEADS: leads}
        params |= {} if leads == list(STANDARD_LEADS) else {ALLOW: ["allow_missing_leads"]}
        if asked.golden.age is not None:
            params[AGE] = [float(asked.golden.age[k])]
        try:
            found: np.ndarray = model.predict(signal, params=params)
        except MlflowException as error:
            if isinstance(error.__cause__, UserError):
                raise error.__cause__ from None
            raise
        return found

    return np.concatenate([asked.or_refused(embed, k) for k in range(len(asked.golden.signal))])
