"""CRT, the Cross Reconstruction Transformer (Zhang et al. 2023): of an ECG's samples, and of the magnitudes and phases
of its spectrum, a share of the patches is dropped, and all of them are told from what is left of the three.

No reports, no views. The encoder reads the kept patches alone: what is dropped leaves no token behind. A small decoder
is given where the dropped ones stand. With v the values of a patch, x what stands there, over all recorded patches and
leads of the three domains alike, dropped and kept:

    L = mean |v - x|^2  +  constraint x  mean over records of  log sum_{i != j} e^{cos(P a_i, Q c_j)}

a_i: a kept patch's token as it enters the transformer, c_j: what the transformer makes of another one of its record; P
and Q are linear. The share rises with the steps: share = step / share_steps, within first_share and last_share.

Of the publication its abstract was read, and the released program, whose settings are the defaults ("code" in the
recipe). There a kept patch is told by one linear map of what the encoder makes of it, without the decoder; frequencies
are dropped in magnitude and phase alike; and the constraint, between samples in the abstract, is between the tokens of
one record, as here.

Ours: a magnitude that is mV and a phase in half turns (`encoders.time_spectrum.spectrum`), so that no domain has all of
the error; each record drops its own patches, where the program draws once for a batch; rotary positions; a linear map
from the encoder to the decoder; a_i has its domain's vector; padded patches and missing leads are neither shown nor
asked for. The projection on top of the encoder learns nothing: probe the features.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from cardialign.data_shards.errors import UsageError
from cardialign.data_shards.record import STANDARD_LEADS, SignalSpec
from cardialign.data_shards.stream.batch import Batch
from cardialign.pretrain.config import Depth, MethodConfig, Positive, RunConfig, Width, refuse
from cardialign.pretrain.encoders.blocks.temporal import TemporalEncoder, head_problems
from cardialign.pretrain.encoders.time_spectrum import DOMAINS, SUMMARIES, TimeSpectrum
from cardialign.pretrain.encoders.vit1d import Patches
from cardialign.pretrain.methods.base import Method, ReportBank, StepLoss, Tensors
from cardialign.pretrain.methods.parts.draws import Draws
from cardialign.pretrain.methods.parts.row_losses import exact, mean_over_batch
from cardialign.pretrain.methods.parts.two_towers import batch_signals

LEADS = len(STANDARD_LEADS)
Share = Annotated[float, Field(ge=1e-6, lt=1)]


class CrtConfig(MethodConfig):
    """first_share, last_share: of the patches of each domain that are dropped, at the first and at the last.
    share_steps: the share would be 1 after so many steps, were there no last_share; null: it is last_share from the
    first step on.
    constraint: its weight, the beta of the paper.
    """

    name: str = "crt"
    first_share: Share = 0.3
    last_share: Share = 0.8
    share_steps: Positive | None = None
    decoder_width: Width = 128
    decoder_depth: Depth = 2
    decoder_heads: Depth = 8
    constraint: Annotated[float, Field(ge=0, le=1000)] = 1e-4

    @model_validator(mode="after")
    def _fits(self) -> CrtConfig:
        problems = head_problems(self.decoder_width, self.decoder_heads, of="decoder_")
        if self.first_share > self.last_share:
            problems.append(f"first_share {self.first_share:g} is above last_share {self.last_share:g}; exchange them")
        refuse(problems)
        return self


class Crt(Method):
    """`method.name: crt`.

    Raises UsageError for another encoder than time_spectrum, and where a spectrum has fewer than two patches.
    Legend: b records, N patches of all domains, M kept ones, K samples of a patch, D width, d decoder_width.
    """

    Config: ClassVar[type[MethodConfig]] = CrtConfig
    reports: ClassVar[bool] = False

    ecg: TimeSpectrum

    def __init__(self, config: RunConfig, spec: SignalSpec) -> None:
        super().__init__(config, spec)
        method = config.method
        assert isinstance(method, CrtConfig)
        if not isinstance(self.ecg, TimeSpectrum):
            raise UsageError(
                f"method crt drops patches of spectra, encoder {config.encoder.name} has none",
                "set encoder.name to time_spectrum",
            )
        self.config, self.patches = method, self.ecg.counts(spec.samples)
        if min(self.patches) < 2:
            raise UsageError(
                f"half a record of {spec.samples} samples has {min(self.patches)} patches of {self.ecg.patch_samples}",
                "shorten encoder.patch_ms",
            )
        D, d = self.ecg.token_width, method.decoder_width
        self.to_decoder = nn.Linear(D, d)
        self.mask_token = nn.Parameter(torch.randn(len(DOMAINS), d) * 0.02)
        self.decoder = TemporalEncoder(d, method.decoder_depth, method.decoder_heads, 1.0, 0.0, 0.0)
        self.to_values = nn.ModuleList(nn.Linear(d, LEADS * self.ecg.patch_samples) for _ in DOMAINS)
        self.of_token, self.of_state = nn.Linear(D, D), nn.Linear(D, D)

    def dropped(self, step: int) -> tuple[int, int, int]:
        """How many patches of each domain are dropped at a step: at least one, and not all."""
        config = self.config
        share = config.last_share
        if config.share_steps is not None:
            share = min(share, max(config.first_share, step / config.share_steps))
        time, magnitude, phase = (min(count - 1, max(1, int(share * count))) for count in self.patches)
        return time, magnitude, phase

    def inputs(self, batch: Batch, bank: ReportBank | None, draws: Draws) -> Tensors:
        """The signal as every encoder reads it, and

        time_kept, time_dropped          int64, places of the patches of time that are shown, and of the others.
        spectrum_kept, spectrum_dropped  the same of both halves of the spectrum.
        recorded                         bool (b, N): recorded to the last sample, of a record with a lead; of a
                                         spectrum where the record has a sample.
        """
        n, m, _ = self.patches
        off = self.dropped(draws.step)
        gone = {
            "time": draws.chosen("dropped time", off[0], n),
            "spectrum": draws.chosen("dropped frequencies", off[1], m),
        }
        whole = (np.arange(n) + 1) * self.ecg.patch_samples <= batch.valid_samples[:, None]
        some = np.repeat(batch.valid_samples[:, None] > 0, 2 * m, axis=1)
        recorded = np.concatenate([whole, some], axis=1) & batch.lead_mask.any(axis=1, keepdims=True)
        made = {**batch_signals(batch), "recorded": torch.from_numpy(recorded)}
        for name, each in gone.items():
            for word, places in (("kept", ~each), ("dropped", each)):
                made[f"{name}_{word}"] = torch.from_numpy(np.nonzero(places)[1].reshape(len(each), -1))
        return made

    def places(self, inputs: Mapping[str, Tensor], word: str) -> list[Tensor]:
        """Places of the patches that are `kept` or `dropped` among all N, int64 (b, ...), of each domain."""
        n, m, _ = self.patches
        spectrum = inputs[f"spectrum_{word}"]
        return [inputs[f"time_{word}"], spectrum + n, spectrum + n + m]

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensors:
        """Features: ecg (b, embedding_dim) of what was shown; time, magnitude, phase and constraint (b, 2), sum and
        number: of the errors of patches and leads, and of records.
        """
        given = inputs["signal"], inputs["lead_mask"], inputs.get("valid_samples")
        everything = self.ecg.embed_patches(*given)
        kept = torch.cat(self.places(inputs, "kept"), dim=1)
        summaries = torch.arange(SUMMARIES, device=kept.device).expand(kept.shape[0], -1)
        shown = everything.keep(torch.cat([summaries, kept + SUMMARIES], dim=1))
        encoded = self.ecg.encode_patches(shown)
        told = self._told(encoded, shown, everything, inputs)
        wanted = self.ecg.patch_values(*given)
        heard = inputs["recorded"][..., None] & inputs["lead_mask"][:, None]  # (b, N, 12)
        errors = {}
        for at, (name, guess) in enumerate(zip(DOMAINS, told, strict=True)):
            places = torch.cat([self.places(inputs, word)[at] for word in ("kept", "dropped")], dim=1)[..., None]
            true = wanted.gather(1, places.expand(-1, -1, wanted.shape[2]))
            counted = heard.gather(1, places.expand(-1, -1, LEADS))
            squares = (guess.to(true.dtype) - true).square().unflatten(2, (LEADS, -1)).mean(dim=3)
            number = counted.sum(dim=(1, 2)).to(squares)
            errors[name] = torch.stack([torch.where(counted, squares, 0.0).sum(dim=(1, 2)), number], dim=1)
        features = encoded[:, :SUMMARIES].mean(dim=1)
        return {"ecg": self.ecg.project(features), **errors, "constraint": self._constraint(shown, encoded, inputs)}

    def _told(self, encoded: Tensor, shown: Patches, everything: Patches, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        """What the decoder says stands in the patches of each domain, (b, n or m, 12 K): the kept ones, the dropped."""
        small, places = self.to_decoder(encoded), self.places(inputs, "dropped")
        empty = torch.cat([self.mask_token[at].expand(*each.shape, -1) for at, each in enumerate(places)], dim=1)
        gone = everything.keep(torch.cat(places, dim=1) + SUMMARIES)
        mask = None
        if shown.mask is not None and gone.mask is not None:
            mask = torch.cat([shown.mask, gone.mask], dim=1)
        sequence = torch.cat([small, empty.to(small.dtype)], dim=1)
        decoded = self.decoder(sequence, torch.cat([shown.seconds, gone.seconds], dim=1), mask)
        dropped = [each.shape[1] for each in places]
        kept = [each.shape[1] for each in self.places(inputs, "kept")]
        first, last = small[:, SUMMARIES:].split(kept, dim=1), decoded[:, small.shape[1] :].split(dropped, dim=1)
        return [layer(torch.cat(both, dim=1)) for layer, *both in zip(self.to_values, first, last, strict=True)]

    def _constraint(self, shown: Patches, encoded: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        """(b, 2): log sum over i != j of e^{cos(P a_i, Q c_j)} over the kept, recorded patches of a record, and 1."""
        a = F.normalize(exact(self.of_token(shown.tokens[:, SUMMARIES:])), dim=-1)
        c = F.normalize(exact(self.of_state(encoded[:, SUMMARIES:])), dim=-1)
        there = inputs["recorded"].gather(1, torch.cat(self.places(inputs, "kept"), dim=1))
        one = torch.eye(there.shape[1], dtype=torch.bool, device=there.device)
        pairs = there[:, :, None] & there[:, None] & ~one
        some = there.any(dim=1)  # then two at least, of magnitude and phase
        scores = (a @ c.transpose(1, 2)).masked_fill(~(pairs | ~some[:, None, None]), -torch.inf)
        found = torch.where(some, scores.flatten(1).logsumexp(dim=1), 0.0)
        return torch.stack([found, some.to(found)], dim=1)

    def loss(
        self, features: Mapping[str, Tensor], inputs: Mapping[str, Tensor], group: dist.ProcessGroup | None = None
    ) -> StepLoss:
        """Metrics: loss; reconstruction, and that of time, magnitude and phase alone; constraint."""
        reconstruction = mean_over_batch(torch.stack([features[name] for name in DOMAINS]).sum(dim=0), group)
        constraint = mean_over_batch(features["constraint"], group)
        loss = reconstruction + self.config.constraint * constraint
        alone = {name: mean_over_batch(features[name].detach(), group) for name in DOMAINS}
        metrics = {"loss": loss, "reconstruction": reconstruction, "constraint": constraint} | alone
        return StepLoss(loss, {name: value.detach() for name, value in metrics.items()})

    def counts(self, inputs: Mapping[str, Tensor]) -> Tensors:
        leads = inputs["lead_mask"].sum(dim=1)
        parts = inputs["recorded"].split(list(self.patches), dim=1)
        numbers = {name: (each.sum(dim=1) * leads).float() for name, each in zip(DOMAINS, parts, strict=True)}
        return {**numbers, "constraint": inputs["recorded"].any(dim=1).float()}
