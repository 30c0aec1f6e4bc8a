"""One worker of a run without Ray.

    torchrun --nproc-per-node N -m cardialign.pretrain --recipe NAME --run-dir FOLDER --set data.shards=FOLDER

Exit codes: 0 done, 1 failed, 2 wrong configuration, 75 stopped at a committed checkpoint (SIGTERM or SIGINT): the same
command continues.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import FrameType

from cardialign.data_shards.errors import DONE, STOPPED, UserError
from cardialign.data_shards.rights import closed_to_others
from cardialign.pretrain.config import load_config
from cardialign.pretrain.run.lock import locked_run
from cardialign.pretrain.run.observer import NullObserver


class _SignalObserver(NullObserver):
    """Stops at the next step boundary after SIGTERM or SIGINT."""

    def __init__(self) -> None:
        self.asked = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True

    def should_stop(self) -> bool:
        return self.asked


def _folder(text: str) -> Path:
    """Nothing (a variable of the shell that is not set) would mean the folder where we are."""
    if not text.strip():
        raise argparse.ArgumentTypeError(f"{text!r} names no folder; is the variable set that it was made of?")
    return Path(text).expanduser() if text.startswith("~/") else Path(text)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m cardialign.pretrain", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", required=True, help="recipe name or YAML file")
    parser.add_argument(
        "--run-dir",
        required=True,
        type=_folder,
        help="checkpoints and the loss trace go here; a run found here is continued",
    )
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override one key of the recipe",
    )
    there = parser.add_mutually_exclusive_group()
    there.add_argument(
        "--extend", dest="resume", action="store_const", const="extend",
        help="continue to another number of steps: the learning rate goes on from where it is",
    )  # fmt: skip
    there.add_argument(
        "--start-over", dest="resume", action="store_const", const="start-over",
        help="move the run that is there to earlier/N and begin at step 0",
    )  # fmt: skip
    parser.add_argument("--threads", type=int, help="torch threads of each worker (default: OMP_NUM_THREADS)")
    options = parser.parse_args(arguments)
    observer = _SignalObserver()
    try:
        config = load_config(options.recipe, options.overrides)
        logging.basicConfig(
            level=logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING,
            format="%(levelname)s %(message)s",
        )
        lock = locked_run(options.run_dir) if os.environ.get("RANK", "0") == "0" else contextlib.nullcontext()
        with closed_to_others(), lock:
            import torch

            if options.threads:
                torch.set_num_threads(options.threads)
            from cardialign.pretrain.training.loop import train

            result = train(config, options.run_dir, observer, resume=options.resume or "same")
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    if torch.distributed.get_rank() == 0:
        sys.stdout.write(json.dumps({**asdict(result), "checkpoint": str(result.checkpoint)}) + "\n")
    torch.distributed.destroy_process_group()
    return STOPPED if result.stopped else DONE


if __name__ == "__main__":
    sys.exit(main())
