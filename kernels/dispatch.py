"""Whether backend "auto" may take the Triton kernels.

A kernel is dispatched where a benchmark has shown it faster than the best PyTorch on that kind of device. None of ours has run on a GPU yet
(they are proven in the interpreter and compiled for sm_80 and sm_90), so "auto" is PyTorch everywhere until `cardialign bench kernels` on a GPU
says otherwise. CARDIALIGN_TRITON=1 opts a process in; `backend="triton"` asks for them by name.
"""

from __future__ import annotations

import os

OPT_IN = "CARDIALIGN_TRITON"


def triton_by_default() -> bool:
    """True where "auto" may choose a Triton kernel in this process."""
    return os.environ.get(OPT_IN, "0") == "1"
