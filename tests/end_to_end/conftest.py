"""Every code block of the README and of the site's teaching pages runs as it stands, one file of tests a path.

Only the length of a training run and its cohort are cut.
"""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

import pytest

from tests.support.readme import ROOT

SHORT = "--set training.epochs=null --set training.steps=4 --set training.log_every=2"
BATCH = "--set training.global_batch=32"


@pytest.fixture
def shell(tmp_path: Path) -> dict[str, str]:
    """Environment in which `cardialign` is the one that is tested.

    In it `pretrain` and `demo` train a few steps, and 60 virtual patients do for 200.
    """
    cardialign = f"exec {shlex.quote(sys.executable)} -m cardialign"
    program = tmp_path / "bin" / "cardialign"
    program.parent.mkdir()
    program.write_text(
        f'#!/bin/sh\ncase "$1" in\n  pretrain|demo) {cardialign} "$@" {SHORT} {BATCH} ;;\n'
        f'  cohort) [ "$4" = 200 ] && set -- "$@" --patients 60; {cardialign} "$@" ;;\n'
        f'  *) {cardialign} "$@" ;;\nesac\n'
    )
    program.chmod(0o755)
    path = os.pathsep.join([str(program.parent), str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
