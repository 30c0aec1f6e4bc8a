"""What MLflow wants to find beside an encoder to load it: `MLmodel`, requirements, an example of an input.

These files lie in the folder of the encoder's artifacts (MLflow looks for `MLmodel` in the folder of a version, and who
fetches that folder by MLflow alone finds the weights where they always were), under names of their own that no export
has (`integrity.OF_MLFLOW`). They are no part of the encoder: its digest and its signature are without them, and `pull`
leaves them where they are.
"""

from __future__ import annotations

import importlib.metadata
import platform
from pathlib import Path
from typing import Any

import numpy as np

from cardialign.cluster.registry.pyfunc.served import AGE, ALLOW, LEADS, RATE, UNITS
from cardialign.pretrain.export.contract import SignalContract
from cardialign.pretrain.export.doors.golden import PER_MILLIVOLT, golden_ecgs
from cardialign.pretrain.run.integrity import CONTRACT, read_parts

LOADER = "cardialign.mlflow"
"""Module that MLflow imports: a name that stays, it is written into every version."""
REQUIRED = ("cardialign", "mlflow", "numpy", "pydantic", "PyYAML", "safetensors", "scipy", "torch")
"""Packages that loading and predicting import, MLflow's own and torch's left to them."""
REQUIREMENTS, PYTHON = "requirements.txt", "python_env.yaml"
SHOWN = ("sampling_rate", "seconds", "samples", "units", "normalisation", "embedding_dim", "leads")
"""Of the signal contract, beside the signature."""


def write_mlmodel(export: Path, folder: Path, *, run_id: str | None = None, beside: bool = True) -> None:
    """Write MLflow's files for the verified export `export` into `folder`.

    run_id: of the run that has the encoder. beside: the encoder will lie in the same folder; else they name the place
    where it lies now. Raises UserError for a folder that is no export.
    """
    import mlflow.pyfunc
    from mlflow.models import Model
    from mlflow.models.utils import _save_example

    parts = read_parts(export, (CONTRACT,))
    contract = SignalContract.from_dict(parts.json(CONTRACT))
    model = Model(
        run_id=run_id,
        signature=_signature(contract),
        metadata={"digest": parts.digest, **{name: contract.to_dict()[name] for name in SHOWN}},
    )
    mlflow.pyfunc.add_to_model(
        model, LOADER, data=None if beside else str(export.absolute()), python_env=PYTHON, predict_fn="predict"
    )
    _save_example(model, _example(contract), str(folder))
    (folder / REQUIREMENTS).write_text("".join(f"{line}\n" for line in requirements()), encoding="utf-8")
    (folder / PYTHON).write_text(
        f"python: {platform.python_version()}\nbuild_dependencies: []\ndependencies:\n- -r {REQUIREMENTS}\n",
        encoding="utf-8",
    )
    model.save(str(folder / "MLmodel"))


def requirements() -> list[str]:
    """`NAME==VERSION` as installed here, without the local part of a version (`+cpu`), which no index knows."""
    return [f"{name}=={importlib.metadata.version(name).partition('+')[0]}" for name in REQUIRED]


def _signature(contract: SignalContract) -> Any:
    """Leads and samples are open: the library judges them, in words, and takes what its parameters allow."""
    from mlflow.models import ModelSignature
    from mlflow.types import DataType, ParamSchema, ParamSpec, Schema, TensorSpec

    kind, out = np.dtype(np.float32), (-1, contract.embedding_dim)
    params = [
        ParamSpec(RATE, DataType.double, None),
        ParamSpec(UNITS, DataType.string, contract.units),
        ParamSpec(LEADS, DataType.string, [], (-1,)),
        ParamSpec(ALLOW, DataType.string, [], (-1,)),
        *([ParamSpec(AGE, DataType.double, [], (-1,))] if contract.age else []),
    ]
    return ModelSignature(
        Schema([TensorSpec(kind, (-1, -1, -1))]), Schema([TensorSpec(kind, out)]), ParamSchema(params)
    )


def _example(contract: SignalContract) -> tuple[np.ndarray, dict[str, Any]]:
    """One virtual person's ECG in mV, and the parameter that must be given."""
    signal = (golden_ecgs(contract)["signal"][:1] / PER_MILLIVOLT).astype(np.float32)
    return signal, {RATE: float(contract.sampling_rate)}
