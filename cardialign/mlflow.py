"""Encoders in MLflow: what `mlflow.pyfunc.load_model("models:/NAME@ALIAS")` imports to load a registered version.

The name of this module stands in the `MLmodel` file of every version, so it stays.
"""

from __future__ import annotations

from cardialign.cluster.registry.pyfunc.served import load_served as _load_pyfunc

__all__ = ["_load_pyfunc"]
