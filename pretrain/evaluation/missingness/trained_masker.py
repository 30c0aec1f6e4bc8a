"""The masker of a SCAR-R run as an adversary: its own order of removal, without noise and without the report."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from cardialign.data_shards.errors import UserError
from cardialign.data_shards.record import SignalSpec
from cardialign.pretrain.config import parse_config
from cardialign.pretrain.evaluation.missingness.evaluate import Ranking
from cardialign.pretrain.methods.base import create_method
from cardialign.pretrain.methods.scar.method import Scar
from cardialign.pretrain.training.checkpoints.condition import newest_sound
from cardialign.pretrain.training.checkpoints.load import load_weights
from cardialign.pretrain.training.checkpoints.state import TrainerState

log = logging.getLogger(__name__)


class TrainedMasker(NamedTuple):
    """The masker's order of removal, and in words how much of the training it has learnt in."""

    ranking: Ranking
    learnt: str


def open_masker(run_dir: Path, spec: SignalSpec) -> TrainedMasker:
    """What the masker of the newest sound checkpoint of a run says of a record's samples.

    Raises UserError when the folder holds no such run or checkpoint, the run has no masker, or it reads other records.
    """
    found, passed = newest_sound(run_dir)
    said = "".join(f"; {one.said()}" for one in passed)
    if found is None:
        raise UserError(
            f"{run_dir} has no verified checkpoint{said}", "give the --run-dir of a finished run of method scar"
        )
    if passed:
        log.warning("masker=%s is that of %s, not of its newest checkpoint%s", run_dir, found.path.name, said)
    state = TrainerState.read(found.path)
    config = parse_config(state.config, f"configuration of {found.path}")
    if state.spec is not None and state.spec != spec:
        raise UserError(
            f"the masker of {run_dir} was trained on {state.spec.seconds:g} s at {state.spec.sampling_rate:g} Hz, the "
            f"records hold {spec.seconds:g} s at {spec.sampling_rate:g} Hz",
            "give the masker of a run on records of this rate and length",
        )
    with torch.random.fork_rng(devices=[]):
        method = create_method(config, spec)
    if not isinstance(method, Scar) or method.config.masker is None:
        raise UserError(
            f"the run in {run_dir} has no masker: its method is {config.method.name}",
            "give a run of method scar whose method.masker is not null",
        )
    method.load_state_dict(load_weights(found.path))
    method.eval().requires_grad_(False)
    scar: Scar = method

    def ranking(signal: np.ndarray, lead_mask: np.ndarray, valid: int) -> np.ndarray:
        given = torch.from_numpy(signal)[None], torch.from_numpy(lead_mask)[None], torch.tensor([valid])
        with torch.inference_mode():
            logits = scar.removal_logits(*given)[0].numpy()
        length = scar.ecg.patch_samples
        samples = np.repeat(logits, length, axis=1)
        return np.pad(samples, ((0, 0), (0, signal.shape[-1] - samples.shape[1])), mode="edge")

    return TrainedMasker(ranking, _learnt(scar, state.step))


def _learnt(scar: Scar, steps: int) -> str:
    assert scar.config.masker is not None
    begins, learnt = scar.config.masker.begins, scar.masker_steps(steps)
    if learnt:
        return f"the masker learnt in {learnt:,} of {steps:,} steps, from step {begins:,} on"
    return (
        f"the masker has not learnt anything: it begins at step {begins:,} and the checkpoint is of step {steps:,}; "
        "what it removes says nothing of the method (train longer, or lower method.masker.begins)"
    )
