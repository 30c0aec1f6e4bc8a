"""An exported encoder in use: arrays in mV and report texts in, unit vectors of the shared space out.

An encoder that was trained without reports has no report head: it embeds signals only.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Unpack

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from cardialign.data_shards.errors import UserError
from cardialign.data_shards.record import SignalSpec
from cardialign.pretrain.choices import ENCODERS
from cardialign.pretrain.config import TextConfig
from cardialign.pretrain.config.named import encoder_section, stored_text
from cardialign.pretrain.encoders.base import EcgEncoder, EncoderOutput, create_encoder
from cardialign.pretrain.export.contract import SignalContract, SignalForm, conform_signal
from cardialign.pretrain.run.integrity import verify_export
from cardialign.pretrain.text.encoder import TextEncoder
from cardialign.pretrain.text.tower import TextHead

if TYPE_CHECKING:
    from cardialign.pretrain.config import RunConfig

log = logging.getLogger(__name__)

EMBED_BATCH = 64


class ReportSide(NamedTuple):
    """What turns a report into a vector beside those of the ECGs: the report encoder, and the head trained on it."""

    text_encoder: TextEncoder
    head: TextHead


class LoadedEncoder:
    """ECG encoder and report head of one run, in evaluation mode, with the signal contract they were trained under.

    Attributes: `config` (read when it is first asked for), `contract`, `provenance`, `digest` (of the export, or a word
    for a model that was never exported), `device`, `ecg`, `head` (None when it was trained without reports).
    """

    def __init__(
        self,
        config: Callable[[], RunConfig],
        contract: SignalContract,
        ecg: EcgEncoder,
        reports: ReportSide | None,
        *,
        provenance: dict[str, Any],
        digest: str,
        device: torch.device | str = "cpu",
    ) -> None:
        self._config, self.contract, self.provenance, self.digest = config, contract, provenance, digest
        self.device = torch.device(device)
        self.ecg = ecg.to(self.device).eval().requires_grad_(False)
        self.head = None if reports is None else reports.head.to(self.device).eval().requires_grad_(False)
        self._text_encoder = None if reports is None else reports.text_encoder

    @cached_property
    def config(self) -> RunConfig:
        """The configuration of the run. Raises UsageError when it names a method or a word that is not here."""
        return self._config()

    @property
    def group_names(self) -> tuple[str, ...]:
        """Names of the lead groups, in the order of `EncoderOutput.group_weights`."""
        return self.ecg.group_names

    @cached_property
    def text_encoder(self) -> TextEncoder:
        """The report encoder, checked to be the one that the head was trained on.

        Raises UserError when another one is installed, or when the encoder was trained without reports.
        """
        if self._text_encoder is None:
            raise self._without_reports()
        expected = self.provenance.get("text_encoder", {}).get("fingerprint")
        found = self._text_encoder.fingerprint
        if expected and found != expected:
            raise UserError(
                f"text encoder {self._text_encoder.encoder_id} here has fingerprint {found[:12]}, "
                f"the encoder was trained with {expected[:12]}",
                "install the same version of the text encoder; ECG embeddings alone do not need it",
            )
        return self._text_encoder

    def _without_reports(self) -> UserError:
        return UserError(
            f"encoder {self.digest[:24]} was trained without reports: it has no place for words beside its ECGs",
            "compare ECGs by their embeddings, or train a classifier on them; "
            "for texts and zero-shot evaluation use an encoder that was trained with reports",
        )

    @torch.inference_mode()
    def encode(
        self,
        signal: np.ndarray | Tensor,
        lead_mask: np.ndarray | Tensor,
        valid_samples: np.ndarray | Tensor | None = None,
    ) -> EncoderOutput:
        """A batch that already fulfils the contract: signal (B, 12, T) mV, lead_mask bool (B, 12), valid_samples (B,).

        Tensors stay on `device`.
        """
        signal, lead_mask = torch.as_tensor(signal), torch.as_tensor(lead_mask)
        valid = None
        if valid_samples is not None and int(torch.as_tensor(valid_samples).min()) < self.contract.samples:
            valid = torch.as_tensor(valid_samples).to(self.device)
        with ENCODERS.watched(self.ecg.word, "cannot embed"):
            return self.ecg(signal.to(self.device), lead_mask.to(self.device), valid)

    def embed(self, signal: np.ndarray, *, sampling_rate: float, **form: Unpack[SignalForm]) -> np.ndarray:
        """ECG array (B, L, T) or (L, T) in mV -> float32 (B, embedding_dim), unit rows.

        form: leads, units, lead_mask, valid_samples, allow_missing_leads, derive_limb_leads, resample, crop, as in
        `cardialign.pretrain.export.contract.SignalForm`; what differs from the contract is refused with the remedy.
        """
        fit = conform_signal(self.contract, signal, sampling_rate=sampling_rate, **form)
        if not fit.lead_mask.all() and self.contract.lead_dropout == 0:
            log.warning(
                "masked_leads=%d remark=this encoder was trained without lead dropout", int((~fit.lead_mask).sum())
            )
        rows = [slice(start, start + EMBED_BATCH) for start in range(0, len(fit.signal), EMBED_BATCH)]
        parts = [self.encode(fit.signal[r], fit.lead_mask[r], fit.valid_samples[r]).embedding for r in rows]
        return torch.cat(parts).float().cpu().numpy()

    @torch.inference_mode()
    def embed_text(self, texts: list[str]) -> np.ndarray:
        """Report texts -> float32 (n, embedding_dim), unit rows in the same space as `embed`.

        Raises UserError when the encoder was trained without reports, or with another text encoder than is here.
        """
        if self.head is None:
            raise self._without_reports()
        pooled = torch.from_numpy(self.text_encoder.embed(texts if isinstance(texts, str) else list(texts))).to(
            self.device
        )
        return self.head(pooled).float().cpu().numpy()

    def untrained(self, seed: int = 0) -> LoadedEncoder:
        """The same configuration with fresh weights of encoder and head: what pretraining has to beat.

        The published text encoder stays.
        """
        return untrained_encoder(self.config, self.contract.spec, seed, self.device, with_reports=self.head is not None)


def untrained_encoder(
    config: RunConfig,
    spec: SignalSpec,
    seed: int = 0,
    device: torch.device | str = "cpu",
    *,
    with_reports: bool = True,
) -> LoadedEncoder:
    """Encoder and report head with fresh weights from `seed`; torch's global generator is left as it was."""
    reports = None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        ecg = create_encoder(config.encoder, spec, config.data.normalisation)
        if with_reports:
            text = TextEncoder(config.text, device=device)
            reports = ReportSide(text, TextHead(text.dim, config.encoder.embedding_dim))
    contract = SignalContract.of(
        spec, config.data.normalisation, config.encoder.embedding_dim, config.training.lead_dropout
    )
    provenance, digest = {"untrained_seed": seed}, f"untrained-seed-{seed}"
    return LoadedEncoder(lambda: config, contract, ecg, reports, provenance=provenance, digest=digest, device=device)


def load_encoder(path: str | Path, device: torch.device | str = "cpu") -> LoadedEncoder:
    """Verify an exported folder and load it. Nothing in it is executed or unpickled.

    The method that trained the encoder need not be here. Raises UserError naming each file that is not as written.
    """
    if str(path).startswith("models:/"):
        raise UserError(
            f"{path} is in the registry, not a folder", f"fetch it first: cardialign registry pull {path} FOLDER"
        )
    path = Path(path)
    digest = verify_export(path)
    values, origin = _read_json(path / "config.json"), str(path / "config.json")
    contract = SignalContract.from_dict(_read_json(path / "signal_contract.json"))
    ecg = create_encoder(encoder_section(values, origin), contract.spec, contract.normalisation)
    ecg.load_state_dict(load_file(path / "model.safetensors"))
    reports = _load_reports(
        path, TextConfig.model_validate(stored_text(values["text"])), contract.embedding_dim, device
    )
    provenance = _read_json(path / "provenance.json")
    log.info("encoder=%s digest=%s rate=%g leads=12", path, digest[:12], contract.sampling_rate)

    def config() -> RunConfig:
        from cardialign.pretrain.config import parse_config  # the whole of a recipe: few users of an encoder want it

        return parse_config(values, origin)

    return LoadedEncoder(config, contract, ecg, reports, provenance=provenance, digest=digest, device=device)


def _load_reports(path: Path, config: TextConfig, embedding_dim: int, device: torch.device | str) -> ReportSide | None:
    if not (path / "text_head.safetensors").is_file():
        return None
    trained = path / "text_encoder.safetensors"
    text = TextEncoder(config, load_file(trained) if trained.is_file() else None, device)
    weights = load_file(path / "text_head.safetensors")
    head = TextHead(weights["norm.weight"].numel(), embedding_dim)
    head.load_state_dict(weights)
    return ReportSide(text, head)


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))
