"""Our signals, twelve leads in mV, brought to what somebody else's encoder was trained on.

Legend: B batch, L leads of the model, T samples.
"""

from __future__ import annotations

import numpy as np
import torch

from cardialign.data_shards.errors import UserError
from cardialign.data_shards.extras import needed_by
from cardialign.data_shards.record import STANDARD_LEADS, SignalSpec
from cardialign.pretrain.encoders.blocks.normalise import normalise
from cardialign.pretrain.export.given_signal import ContractSignal, at_length, at_rate
from cardialign.pretrain.export.outside.contract import Filter, OutsideContract

MICROVOLTS = 1000.0


def check_length(contract: OutsideContract, spec: SignalSpec) -> None:
    """Raises UserError where records of this length are too short for the contract, which says `shorter: refuse`."""
    if contract.shorter == "refuse" and round(spec.samples * contract.sampling_rate / spec.sampling_rate) < (
        contract.spec.samples
    ):
        raise UserError(
            f"it holds {spec.seconds:g} s, the encoder reads {contract.seconds:g} s and its contract says "
            "shorter: refuse",
            f"build shards of {contract.seconds:g} seconds, or write `shorter: zeros` where the encoder was "
            "trained with signals that end in zeros",
        )


def model_input(
    contract: OutsideContract, signal: np.ndarray, lead_mask: np.ndarray, valid: np.ndarray, rate: float
) -> np.ndarray:
    """signal float32 (B, 12, T) in mV at `rate` Hz, lead_mask bool (B, 12), valid int (B,) -> what the model takes.

    In the layout, leads, unit and dtype of the contract; 0 where nothing was recorded. Raises UserError for a missing
    lead that it refuses, and for a signal shorter than it takes.
    """
    standard = contract.standard
    hidden = np.where(lead_mask[:, :, None] & (np.arange(signal.shape[-1]) < valid[:, None])[:, None], signal, 0.0)
    wide, valid = at_rate(hidden.astype(np.float32), valid.astype(np.int64), standard, rate, True)
    if contract.filter != "none":
        assert isinstance(contract.filter, Filter)
        wide = filtered(wide, valid, contract.filter, contract.sampling_rate)
    return laid_out(contract, at_length(wide, lead_mask, valid, standard, True))


def laid_out(contract: OutsideContract, given: ContractSignal) -> np.ndarray:
    """A signal of the contract's rate and length, filtered: its leads in the model's order, unit, layout and dtype."""
    columns = [STANDARD_LEADS.index(lead) for lead in contract.leads]
    mask = given.lead_mask[:, columns]
    if contract.missing_leads == "refuse" and not mask.all():
        absent = [lead for k, lead in enumerate(contract.leads) if not mask[:, k].all()]
        raise UserError(
            f"records without lead {', '.join(absent)}, and the encoder's contract says missing_leads: refuse",
            "leave them out, or write `missing_leads: zeros` where the encoder was trained with leads of zeros",
        )
    valid = given.valid_samples
    if contract.shorter == "refuse" and (valid < contract.spec.samples).any():
        shortest = float(valid.min()) / contract.sampling_rate
        raise UserError(
            f"a signal of {shortest:g} s, and the encoder's contract says shorter: refuse at {contract.seconds:g} s",
            "leave it out, or write `shorter: zeros` where the encoder was trained with signals that end in zeros",
        )
    values = given.signal[:, columns]
    if contract.units == "uV":
        values = values * np.float32(MICROVOLTS)
    scaled = normalise(
        torch.from_numpy(np.ascontiguousarray(values)), torch.from_numpy(mask), torch.from_numpy(valid),
        contract.normalisation,
    ).numpy()  # fmt: skip
    if contract.layout == "time-leads":
        scaled = scaled.transpose(0, 2, 1)
    elif contract.layout == "leads-concatenated":
        scaled = scaled.reshape(len(scaled), -1)
    return np.ascontiguousarray(scaled, dtype=contract.dtype)


def filtered(signal: np.ndarray, valid: np.ndarray, chosen: Filter, rate: float) -> np.ndarray:
    """(B, L, T) at `rate` Hz through a Butterworth filter, forwards and backwards; padding stays 0 and is not heard."""
    with needed_by("the filter of a signal contract", "shards"):
        from scipy.signal import butter, sosfiltfilt

    edges = [edge for edge in (chosen.high_pass, chosen.low_pass) if edge is not None]
    kind = "bandpass" if len(edges) == 2 else "highpass" if chosen.low_pass is None else "lowpass"
    sections = butter(chosen.order, edges if len(edges) == 2 else edges[0], kind, fs=rate, output="sos")
    out = np.zeros_like(signal)
    for length in np.unique(valid):
        rows = valid == length
        room = min(3 * (2 * len(sections) + 1), int(length) - 1)  # what `sosfiltfilt` continues at both ends
        if room > 0:
            out[rows, :, :length] = sosfiltfilt(sections, signal[rows, :, :length], axis=-1, padlen=room)
    return out
