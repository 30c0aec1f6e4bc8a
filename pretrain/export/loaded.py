"""An exported encoder in use: arrays in mV and report texts in, unit vectors of the shared space out.

An encoder that was trained without reports has no report head: it embeds signals only.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
import torch
from torch import Tensor

from cardialign.data_shards.errors import UserError
from cardialign.data_shards.record import SignalSpec
from cardialign.data_shards.shard_set.splits import SplitRule
from cardialign.pretrain.choices import ENCODERS
from cardialign.pretrain.config import EncoderConfig
from cardialign.pretrain.config.named import encoder_section
from cardialign.pretrain.encoders.base import EcgEncoder, EncoderOutput, create_encoder
from cardialign.pretrain.encoders.blocks.normalise import NORMALISATIONS
from cardialign.pretrain.export.ages import YEARS, AgeReader, checked_ages
from cardialign.pretrain.export.building import (
    ReportSide,
    check_plausible,
    load_reports,
    load_scorings,
    module_of,
    where_its_run_has_it,
)
from cardialign.pretrain.export.contract import SignalContract
from cardialign.pretrain.export.given_signal import SignalForm, conform_signal
from cardialign.pretrain.export.missing_card import MissingLeads, MissingnessCard
from cardialign.pretrain.export.trained_on import TrainedOn, TrainedSet, chosen, run_word
from cardialign.pretrain.export.usable import Reader, UsableEncoder, tensors_digest, usable_device
from cardialign.pretrain.methods.parts.scoring import COSINE, Scoring
from cardialign.pretrain.run.integrity import (
    CONTRACT,
    MODEL,
    PROVENANCE,
    SETTINGS,
    read_export,
)
from cardialign.pretrain.text.encoder import TextEncoder

if TYPE_CHECKING:
    from cardialign.pretrain.config import RunConfig

log = logging.getLogger(__name__)

EMBED_BATCH = 64


class LoadedEncoder(UsableEncoder):
    """ECG encoder and report head of one run, in evaluation mode, with the signal contract they were trained under.

    Attributes: `config` (read when it is first asked for), `contract`, `provenance`, `digest` (of the export, or a word
    for a model that was never exported), `device`, `ecg`, `head` (None when it was trained without reports),
    `trained_on` (the records it has seen; None when nobody wrote them down), `card` (what it is worth without some
    leads; None when nobody measured it).
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
        scorings: Mapping[str, Callable[[], Scoring]] = MappingProxyType({}),
    ) -> None:
        """scorings: makes each way to score texts but the cosine; provenance says which is its own."""
        self._config, self.contract, self.provenance, self.digest = config, contract, provenance, digest
        self.trained_on: TrainedOn | None = None
        self.card: MissingnessCard | None = None
        self._bare_digest = digest
        self._missing = MissingLeads(self.contract.lead_dropout > 0 or self.contract.lead_masking > 0)
        self.device = torch.device(device)
        self.ecg = ecg.to(self.device).eval().requires_grad_(False)
        self.leaves_out, self.reads_age = self.ecg.removes_tokens, self.ecg.reads_age
        self.head = None if reports is None else reports.head.to(self.device).eval().requires_grad_(False)
        self._text_encoder = None if reports is None else reports.text_encoder
        self._scorings, self._made, self._told_of_age = scorings, dict[str, Scoring](), False

    @cached_property
    def config(self) -> RunConfig:
        """The configuration of the run. Raises UsageError when it names a method or a word that is not here."""
        return self._config()

    @property
    def group_leads(self) -> Mapping[str, tuple[str, ...]]:
        return self.ecg.group_leads

    @cached_property
    def text_encoder(self) -> TextEncoder:
        """The report encoder, checked to be the one that the head was trained on.

        Raises UserError when another one is installed, or when the encoder was trained without reports.
        """
        if self._text_encoder is None:
            raise self._without_reports()
        described = self.provenance.get("text_encoder")
        expected = described.get("fingerprint") if isinstance(described, dict) else None
        text_encoder = self._text_encoder()
        found = text_encoder.fingerprint
        if expected and found != expected:
            raise UserError(
                f"text encoder {text_encoder.encoder_id} here has fingerprint {found[:12]}, "
                f"the encoder was trained with {str(expected)[:12]}",
                "install the same version of the text encoder; ECG embeddings alone do not need it",
            )
        return text_encoder

    def _without_reports(self) -> UserError:
        return UserError(
            f"encoder {self.digest[:24]} was trained without reports: it has no place for words beside its ECGs",
            "compare ECGs by their embeddings, or train a classifier on them; "
            "for texts and zero-shot evaluation use an encoder that was trained with reports",
        )

    def encode(
        self,
        signal: np.ndarray | Tensor,
        lead_mask: np.ndarray | Tensor,
        valid_samples: np.ndarray | Tensor | None = None,
        return_tokens: bool = False,
        missing: np.ndarray | None = None,
        age: Any = None,
    ) -> EncoderOutput:
        """A batch that already fulfils the contract: signal (B, 12, T) mV, lead_mask bool (B, 12), valid_samples (B,).

        Tensors stay on `device`. return_tokens: the tokens too, not the pooled features alone. missing: as `GapReader`.
        age: in years, (B,) or one number, for an encoder that `reads_age`; without it the age gate changes nothing.
        Raises UserError for what is no age in years, and for one that the encoder does not read.
        """
        known = checked_ages(age, len(signal), self.contract.age)
        return self._encode(signal, lead_mask, valid_samples, return_tokens, missing, known)

    @torch.inference_mode()
    def _encode(
        self,
        signal: np.ndarray | Tensor,
        lead_mask: np.ndarray | Tensor,
        valid_samples: np.ndarray | Tensor | None = None,
        return_tokens: bool = False,
        missing: np.ndarray | None = None,
        age: np.ndarray | None = None,
    ) -> EncoderOutput:
        """As `encode`; NaN in `age` says that one is not known."""
        signal, lead_mask = torch.as_tensor(signal), torch.as_tensor(lead_mask)
        valid = None
        if valid_samples is not None and int(torch.as_tensor(valid_samples).min()) < self.contract.samples:
            valid = torch.as_tensor(valid_samples).to(self.device)
        with ENCODERS.watched(self.ecg.word, "cannot embed"):
            more = {} if missing is None else {"missing": torch.as_tensor(missing).to(self.device)}
            if age is not None:
                more["age"] = torch.as_tensor(age).to(self.device)
            elif self.reads_age and not self._told_of_age:
                self._told_of_age = True  # once: whoever has no ages has many records
                log.warning("age=unknown remark=the age gate of this encoder changes nothing; give age=YEARS")
            return self.ecg(signal.to(self.device), lead_mask.to(self.device), valid, return_tokens, **more)

    def embed(self, signal: np.ndarray, *, sampling_rate: float, **form: Unpack[SignalForm]) -> np.ndarray:
        """ECG array (B, L, T) or (L, T) in mV -> float32 (B, embedding_dim), unit rows.

        form: leads, units, lead_mask, valid_samples, allow_missing_leads, derive_limb_leads, resample, crop, age, as in
        `cardialign.pretrain.export.given_signal.SignalForm`; what differs from the contract is refused with the remedy.
        """
        return self._read(self._reader(), signal, sampling_rate, form)

    def _reader(self) -> Reader:
        return AgeReader(self._encode) if self.reads_age else self._encode

    def _read(self, reader: Reader, signal: np.ndarray, sampling_rate: float, form: SignalForm) -> np.ndarray:
        fit = conform_signal(self.contract, signal, sampling_rate=sampling_rate, **form)
        self._missing.tell(fit.lead_mask, self.card)
        rows = [slice(start, start + EMBED_BATCH) for start in range(0, len(fit.signal), EMBED_BATCH)]
        ages = [{} if fit.age is None else {"age": fit.age[r]} for r in rows]
        parts = [
            reader(fit.signal[r], fit.lead_mask[r], fit.valid_samples[r], **age).embedding
            for r, age in zip(rows, ages, strict=True)
        ]
        return torch.cat(parts).float().cpu().numpy()

    @property
    def bare_digest(self) -> str:
        return self._bare_digest

    @torch.inference_mode()
    def embed_text(self, texts: list[str]) -> np.ndarray:
        """Report texts -> float32 (n, embedding_dim), unit rows in the same space as `embed`.

        Raises UserError when the encoder was trained without reports, or with another text encoder than is here.
        """
        if self.head is None:
            raise self._without_reports()
        pooled = torch.from_numpy(self.text_encoder.embed(texts if isinstance(texts, str) else list(texts)))
        return self.head(pooled.to(self.device)).float().cpu().numpy()

    def tokens_of(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray] | None:
        return None if self.head is None else self.text_encoder.tokenize(list(texts))

    def reader(self, spec: SignalSpec) -> Reader:
        """Raises UserError for records of another rate or length than it was trained on."""
        self._check_fit(spec)
        return self._reader()

    def token_reader(self, spec: SignalSpec) -> Reader:
        self._check_fit(spec)
        reader = partial(self._encode, return_tokens=True)
        return AgeReader(reader) if self.reads_age else reader

    @property
    def scorings(self) -> tuple[str, ...]:
        given = self.provenance.get("scorings")
        ways = given if isinstance(given, list) else [COSINE]
        return tuple(way for way in ways if way == COSINE or way in self._scorings) or (COSINE,)

    @torch.inference_mode()
    def text_reader(self, spec: SignalSpec, texts: list[str], scoring: str) -> Reader:
        """Raises UsageError for a way that it does not have, UserError as `reader` and `embed_text`."""
        if scoring == COSINE or scoring not in self._scorings:
            return super().text_reader(spec, texts, scoring)
        self._check_fit(spec)
        if scoring not in self._made:
            self._made[scoring] = self._scorings[scoring]().to(self.device).eval().requires_grad_(False)
        way = self._made[scoring]
        words = {name: tensor.to(self.device) for name, tensor in way.words(list(texts), self).items()}

        @torch.inference_mode()
        def scored(
            signal: np.ndarray, lead_mask: np.ndarray, valid_samples: np.ndarray, age: np.ndarray | None = None
        ) -> EncoderOutput:
            output = self._encode(signal, lead_mask, valid_samples, return_tokens=way.reads_tokens, age=age)
            return output._replace(embedding=way(output, words).float())

        return AgeReader(scored) if self.reads_age else scored

    def class_scores(
        self,
        signal: np.ndarray,
        texts: list[str],
        *,
        sampling_rate: float,
        scoring: str | None = None,
        **form: Unpack[SignalForm],
    ) -> np.ndarray:
        way = scoring or self.scorings[0]
        if way == COSINE:
            return super().class_scores(signal, texts, sampling_rate=sampling_rate, scoring=way, **form)
        return self._read(self.text_reader(self.contract.spec, texts, way), signal, sampling_rate, form)

    @property
    def report_style(self) -> str:
        return self.config.text.style

    def trainable(self, spec: SignalSpec) -> EcgEncoder:
        self._check_fit(spec)
        return self.ecg

    def _check_fit(self, has: SignalSpec) -> None:
        wants = self.contract
        if has.sampling_rate != wants.sampling_rate or has.samples != wants.samples:
            raise UserError(
                f"it holds {has.seconds:g} s at {has.sampling_rate:g} Hz, "
                f"the encoder was trained on {wants.seconds:g} s at {wants.sampling_rate:g} Hz",
                f"build shards with sampling rate {wants.sampling_rate:g} and {wants.seconds:g} seconds "
                "from the same source",
            )

    def weights_digest(self) -> str:
        return tensors_digest(self.ecg.state_dict())

    def computing_digest(self) -> str:
        """Known by its weights: the word that stands for the digest of one that was never exported says little."""
        made = self.config.encoder.model_dump(mode="json"), self.contract.to_dict()
        return tensors_digest(self.ecg.state_dict(), json.dumps(made).encode())

    def seen(self) -> TrainedOn:
        """Of an export from before records were written down: the one set that its run names, if it names one."""
        if self.trained_on is not None:
            return self.trained_on
        training = self.provenance.get("training")
        fingerprint = training.get("shards_fingerprint") if isinstance(training, dict) else None
        doubt = "its export does not say which records it was trained on"
        if not isinstance(fingerprint, str) or not fingerprint:
            return TrainedOn(unknown=(doubt,))
        data = self.config.data
        rule = None if data.split is None else SplitRule(data.split, data.split_salt, data.split_fractions)
        return TrainedOn((TrainedSet({"fingerprint": fingerprint, **chosen(data.folds, rule)}),), (doubt,))

    def training_run(self) -> str:
        return run_word(self.config.model_dump(mode="json"), self.provenance.get("training")) or self.digest

    def untrained(self, seed: int = 0) -> LoadedEncoder:
        """The same configuration with fresh weights of encoder and head, and the published text encoder."""
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
    from cardialign.pretrain.methods.base import method_class

    reports, method = None, method_class(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        ecg = create_encoder(config.encoder, spec, config.data.normalisation)
        if with_reports:
            text = TextEncoder(config.text, device=device)
            reports = ReportSide(lambda: text, method.head(text.dim, config.encoder.embedding_dim))

    def fresh(way: str) -> Scoring:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return method.scoring(way, config, ecg)

    ways = [way for way in method.scorings if with_reports]
    contract = SignalContract.of_run(spec, config, ecg.reads_age)
    provenance: dict[str, Any] = {"untrained_seed": seed, **({"scorings": ways} if len(ways) > 1 else {})}
    untrained = LoadedEncoder(
        lambda: config,
        contract,
        ecg,
        reports,
        provenance=provenance,
        digest=f"untrained-seed-{seed}",
        device=device,
        scorings={way: partial(fresh, way) for way in ways if way != COSINE},
    )
    untrained.trained_on = TrainedOn()
    return untrained


def load_encoder(path: str | Path, device: torch.device | str = "cpu") -> LoadedEncoder:
    """Verify an exported folder and load it. Nothing in it is executed or unpickled.

    The method that trained the encoder need not be here, and neither need its text encoder until a text is embedded.
    Raises UserError naming each file that is not as written, or that cannot be what it says, and for a device that is
    not here.
    """
    device = usable_device(device)
    if str(path).startswith("models:/"):
        raise UserError(
            f"{path} is in the registry, not a folder", f"fetch it first: cardialign registry pull {path} FOLDER"
        )
    path = Path(path)
    parts = read_export(path)
    values, origin = where_its_run_has_it(parts.json(SETTINGS), path), str(path / SETTINGS)
    contract = SignalContract.from_dict(parts.json(CONTRACT))
    if contract.normalisation not in NORMALISATIONS:
        raise parts.wrong(CONTRACT, f"unknown normalisation {contract.normalisation!r:.40}")
    section = encoder_section(values, origin)
    if not isinstance(section, EncoderConfig):
        raise parts.wrong(SETTINGS, "encoder: not a section")
    check_plausible(parts, section.model_dump())
    if section.embedding_dim != contract.embedding_dim:
        raise parts.wrong(CONTRACT, f"embedding_dim {contract.embedding_dim}, {SETTINGS} says {section.embedding_dim}")
    ecg = module_of(
        parts, MODEL, parts.tensors(MODEL), lambda: create_encoder(section, contract.spec, contract.normalisation)
    )
    if ecg.reads_age is not (contract.age == YEARS):
        raise parts.wrong(CONTRACT, f"age {contract.age!r}, {SETTINGS} says that the encoder reads it: {ecg.reads_age}")
    reports = load_reports(parts, values, contract.embedding_dim, device)
    provenance = parts.json(PROVENANCE)
    log.info("encoder=%s digest=%s rate=%g leads=12", path, parts.digest[:12], contract.sampling_rate)

    def config() -> RunConfig:
        from cardialign.pretrain.config import parse_config  # the whole of a recipe: few users of an encoder want it

        return parse_config(values, origin)

    loaded = LoadedEncoder(
        config,
        contract,
        ecg,
        reports,
        provenance=provenance,
        digest=parts.digest,
        device=device,
        scorings=load_scorings(parts, config, ecg),
    )
    loaded.trained_on, loaded.card = TrainedOn.read(parts), MissingnessCard.read(parts)
    loaded._bare_digest = parts.bare_digest
    return loaded
