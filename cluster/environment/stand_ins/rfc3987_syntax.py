"""In front of the installed package of the same name, which parses a grammar for seconds when it is imported, and which
every process that imports Ray imports (`cardialign.cluster.environment.put_off`): it is imported when it is called.

Who has not installed it finds no module here either.
"""

import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import module_from_spec
from pathlib import Path
from types import ModuleType
from typing import Any

_NAME, _HERE = "rfc3987_syntax", Path(__file__).resolve().parent


def _installed() -> ModuleSpec:
    found = PathFinder.find_spec(_NAME, [place for place in sys.path if Path(place or ".").resolve() != _HERE])
    if found is None or found.loader is None:
        raise ModuleNotFoundError(f"No module named {_NAME!r}", name=_NAME)
    return found


__path__ = list(_installed().submodule_search_locations or [])


def _package() -> ModuleType:
    there = sys.modules.get(_NAME)
    if there is not None and getattr(there, "_HERE", None) != _HERE:
        return there
    spec = _installed()
    sys.modules[_NAME] = module = module_from_spec(spec)
    assert spec.loader is not None
    spec.loader.exec_module(module)
    return module


def __getattr__(name: str) -> Callable[..., Any]:
    if name.startswith("__"):
        raise AttributeError(name)

    def later(*words: Any, **more: Any) -> Any:
        return getattr(_package(), name)(*words, **more)

    return later
