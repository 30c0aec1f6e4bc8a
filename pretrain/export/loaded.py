"""An exported encoder in use: arrays in mV and report texts in, unit vectors of the shared space out.

An encoder that was trained without reports has no report head: it embeds signals only.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, Unpack

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from cardialign.data_shards.errors import UserError
from cardialign.data_shards.record import SignalSpec
from cardialign.data_shards.shard_set.splits import SplitRule
from cardialign.pretrain.choices import ENCODERS
from cardialign.pretrain.config import EncoderConfig, TextConfig
from cardialign.pretrain.config.named import encoder_section, stored_text
from cardialign.pretrain.encoders.base import EcgEncoder, EncoderOutput, create_encoder
from cardialign.pretrain.encoders.blocks.normalise import NORMALISATIONS
from cardialign.pretrain.export.contract import SignalContract, SignalForm, conform_signal
from cardialign.pretrain.export.trained_on import TrainedOn, TrainedSet, chosen, run_word
from cardialign.pretrain.export.usable import Reader, UsableEncoder, tensors_digest
from cardialign.pretrain.run.integrity import (
    CONTRACT,
    MODEL,
    PROVENANCE,
    REPORT_ENCODER,
    REPORT_HEAD,
    SETTINGS,
    VerifiedExport,
    read_export,
)
from cardialign.pretrain.text.encoder import TextEncoder
from cardialign.pretrain.text.tower import TextHead

if TYPE_CHECKING:
    from cardialign.pretrain.config import RunConfig

log = logging.getLogger(__name__)

EMBED_BATCH = 64
DRAWING = {nn.init.kaiming_uniform_, nn.init.uniform_, nn.init.normal_, Tensor.normal_, Tensor.uniform_, Tensor.erfinv_}
"""What fills a parameter with random numbers; `erfinv_` is the slow step of a truncated normal."""


Built = TypeVar("Built", bound=nn.Module)


class ReportSide(NamedTuple):
    """What turns a report into a vector beside those of the ECGs: the report encoder, and the head trained on it.

    text_encoder is looked for when it is called, not before: ECGs do not need it.
    """

    text_encoder: Callable[[], TextEncoder]
    head: TextHead


class LoadedEncoder(UsableEncoder):
    """ECG encoder and report head of one run, in evaluation mode, with the signal contract they were trained under.

    Attributes: `config` (read when it is first asked for), `contract`, `provenance`, `digest` (of the export, or a word
    for a model that was never exported), `device`, `ecg`, `head` (None when it was trained without reports),
    `trained_on` (the records it has seen; None when nobody wrote them down).
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
        self.trained_on: TrainedOn | None = None
        self.device = torch.device(device)
        self.ecg = ecg.to(self.device).eval().requires_grad_(False)
        self.leaves_out = self.ecg.removes_tokens
        self.head = None if reports is None else reports.head.to(self.device).eval().requires_grad_(False)
        self._text_encoder = None if reports is None else reports.text_encoder

    @cached_property
    def config(self) -> RunConfig:
        """The configuration of the run. Raises UsageError when it names a method or a word that is not here."""
        return self._config()

    @property
    def group_names(self) -> tuple[str, ...]:  # of `EncoderOutput.group_weights`
        return self.ecg.group_names

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

    @torch.inference_mode()
    def encode(
        self,
        signal: np.ndarray | Tensor,
        lead_mask: np.ndarray | Tensor,
        valid_samples: np.ndarray | Tensor | None = None,
        return_tokens: bool = False,
        missing: np.ndarray | None = None,
    ) -> EncoderOutput:
        """A batch that already fulfils the contract: signal (B, 12, T) mV, lead_mask bool (B, 12), valid_samples (B,).

        Tensors stay on `device`. return_tokens: the tokens too, not the pooled features alone. missing: as `GapReader`.
        """
        signal, lead_mask = torch.as_tensor(signal), torch.as_tensor(lead_mask)
        valid = None
        if valid_samples is not None and int(torch.as_tensor(valid_samples).min()) < self.contract.samples:
            valid = torch.as_tensor(valid_samples).to(self.device)
        with ENCODERS.watched(self.ecg.word, "cannot embed"):
            gaps = {} if missing is None else {"missing": torch.as_tensor(missing).to(self.device)}
            return self.ecg(signal.to(self.device), lead_mask.to(self.device), valid, return_tokens, **gaps)

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
        given = texts if isinstance(texts, str) else list(texts)
        pooled = torch.from_numpy(self.text_encoder.embed(given)).to(self.device)
        return self.head(pooled).float().cpu().numpy()

    def reader(self, spec: SignalSpec) -> Reader:
        """Raises UserError for records of another rate or length than it was trained on."""
        self._check_fit(spec)
        return self.encode

    def token_reader(self, spec: SignalSpec) -> Reader:
        self._check_fit(spec)
        return partial(self.encode, return_tokens=True)

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
    reports = None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        ecg = create_encoder(config.encoder, spec, config.data.normalisation)
        if with_reports:
            text = TextEncoder(config.text, device=device)
            reports = ReportSide(lambda: text, TextHead(text.dim, config.encoder.embedding_dim))
    contract = SignalContract.of(
        spec, config.data.normalisation, config.encoder.embedding_dim, config.training.lead_dropout
    )
    provenance, digest = {"untrained_seed": seed}, f"untrained-seed-{seed}"
    untrained = LoadedEncoder(
        lambda: config, contract, ecg, reports, provenance=provenance, digest=digest, device=device
    )
    untrained.trained_on = TrainedOn()
    return untrained


def usable_device(device: torch.device | str) -> torch.device:
    """The device, when numbers can be put on it and read back. Raises UserError."""
    try:
        found = torch.device(device)
        torch.zeros(1, device=found).item()
    except (RuntimeError, AssertionError, TypeError, ValueError, NotImplementedError) as error:
        raise UserError(
            f"device {str(device)!r:.60} cannot be used here ({str(error).splitlines()[0]:.120})",
            "give cpu, or cuda on a machine whose GPU PyTorch sees (`cardialign doctor` says whether it does)",
        ) from None
    return found


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
    values, origin = parts.json(SETTINGS), str(path / SETTINGS)
    contract = SignalContract.from_dict(parts.json(CONTRACT))
    if contract.normalisation not in NORMALISATIONS:
        raise parts.wrong(CONTRACT, f"unknown normalisation {contract.normalisation!r:.40}")
    section = encoder_section(values, origin)
    if not isinstance(section, EncoderConfig):
        raise parts.wrong(SETTINGS, "encoder: not a section")
    _check_plausible(parts, section.model_dump())
    if section.embedding_dim != contract.embedding_dim:
        raise parts.wrong(CONTRACT, f"embedding_dim {contract.embedding_dim}, {SETTINGS} says {section.embedding_dim}")
    ecg = _module(
        parts, MODEL, parts.tensors(MODEL), lambda: create_encoder(section, contract.spec, contract.normalisation)
    )
    reports = _load_reports(parts, values, contract.embedding_dim, device)
    provenance = parts.json(PROVENANCE)
    log.info("encoder=%s digest=%s rate=%g leads=12", path, parts.digest[:12], contract.sampling_rate)

    def config() -> RunConfig:
        from cardialign.pretrain.config import parse_config  # the whole of a recipe: few users of an encoder want it

        return parse_config(values, origin)

    loaded = LoadedEncoder(config, contract, ecg, reports, provenance=provenance, digest=parts.digest, device=device)
    loaded.trained_on = TrainedOn.read(parts)
    return loaded


def _load_reports(
    parts: VerifiedExport, values: dict[str, Any], embedding_dim: int, device: torch.device | str
) -> ReportSide | None:
    if REPORT_HEAD not in parts.content:
        return None
    try:
        config = TextConfig.model_validate(stored_text(values.get("text", {})))
    except ValueError as error:
        raise parts.wrong(SETTINGS, f"text: {error}") from None
    weights = parts.tensors(REPORT_HEAD)
    width = weights["norm.weight"].numel() if "norm.weight" in weights else 0
    head = _module(parts, REPORT_HEAD, weights, lambda: TextHead(width, embedding_dim))
    state = parts.tensors(REPORT_ENCODER) if REPORT_ENCODER in parts.content else None
    return ReportSide(lambda: TextEncoder(config, state, device), head)


def _check_plausible(parts: VerifiedExport, claimed: Any) -> None:
    """Raises UserError when a number in the section of the encoder is larger than the encoder as a whole."""
    most = max(10**6, len(parts.content[MODEL]))
    waiting = [claimed]
    while waiting:
        value = waiting.pop()
        if isinstance(value, int | float) and not abs(value) <= most:
            raise parts.wrong(SETTINGS, f"encoder: {value:g} is more than {MODEL} can hold")
        waiting += value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else []


def _module(parts: VerifiedExport, name: str, weights: dict[str, Tensor], make: Callable[[], Built]) -> Built:
    """What `make` builds, with the `weights` of file `name`; building ends where it asks for more than these."""
    try:
        with at_most(len(weights), sum(tensor.numel() for tensor in weights.values())), _WithoutDrawing():
            made = make()
    except UserError:
        raise
    except Exception as error:  # of torch, Python or a plug-in: whatever a wrong figure leads to
        raise parts.wrong(SETTINGS, f"what it describes is not in {name}: {error}") from None
    asked = {key: tuple(tensor.shape) for key, tensor in made.state_dict().items()}
    found = {key: tuple(tensor.shape) for key, tensor in weights.items()}
    differing = sorted(key for key in asked.keys() | found.keys() if asked.get(key) != found.get(key))
    if differing:
        key = differing[0]
        raise parts.wrong(
            SETTINGS,
            f"what it describes is not in {name}: {len(differing)} tensors differ (first: {key} has shape "
            f"{found.get(key, 'none')}, the configuration asks for {asked.get(key, 'none')})",
        )
    made.load_state_dict(weights)
    return made


class _WithoutDrawing(TorchFunctionMode):
    """In this block, no random numbers are drawn into a parameter: all of them are about to be replaced."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = args[0] if args else (kwargs or {}).get("tensor")
        if isinstance(given, nn.Parameter) and func in DRAWING:  # a buffer may be drawn on purpose, from its own seed
            return given
        return func(*args, **(kwargs or {}))


@contextmanager
def at_most(tensors: int, numbers: int) -> Iterator[None]:
    """In this block, modules may register this many parameters with as many numbers; twice as many end it at once.

    A layer is asked before its weights are drawn, so what a configuration claims beyond the weights takes no memory.
    """
    thread, seen = threading.get_ident(), [0, 0]

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if threading.get_ident() != thread or parameter is None:
            return
        seen[0], seen[1] = seen[0] + 1, seen[1] + parameter.numel()
        if seen[0] > 2 * tensors or seen[1] > 2 * numbers:
            raise ValueError(f"it asks for more than the {tensors} tensors and {numbers} weights that are there")

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()
