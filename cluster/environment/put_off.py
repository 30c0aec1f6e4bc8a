"""What Ray imports in each of its processes and nobody calls: a parser of international addresses, which `jsonschema`
takes where it is installed (with the extra `sign`). Its import is two thirds of Ray's own.

A process that finds our stand-in first imports the package itself when one of its functions is called.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from pathlib import Path

STAND_INS = Path(__file__).parent / "stand_ins"
"""To be the first folder of PYTHONPATH of processes that import Ray."""
_NAMES = ("rfc3987_syntax",)


def put_off() -> None:
    """In this process, before it imports Ray."""
    for name in _NAMES:
        spec = importlib.util.spec_from_file_location(name, STAND_INS / f"{name}.py")
        if name in sys.modules or spec is None or spec.loader is None:
            continue
        module = importlib.util.module_from_spec(spec)
        with contextlib.suppress(ModuleNotFoundError):  # it is not installed
            spec.loader.exec_module(module)
            sys.modules[name] = module
