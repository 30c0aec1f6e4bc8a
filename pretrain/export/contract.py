"""What an exported encoder demands of a signal: the file `signal_contract.json` of its folder."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from cardialign.data_shards.errors import UserError
from cardialign.data_shards.record import STANDARD_LEADS, SignalSpec
from cardialign.pretrain.config import RunConfig
from cardialign.pretrain.export.ages import MEANING, YEARS

CONTRACT_VERSION = 1
HIGHEST, LONGEST = 1e6, 50_000_000
"""Of Hz and of seconds; samples of a record: more than a day at 500 Hz."""

MEANINGS = {
    "lead_mask": "bool (B, 12) in the order of `leads`; False = not recorded: masked by the encoder, "
    "whatever the samples hold (never read as 0 mV)",
    "valid_samples": "int64 (B,): samples from here on are zero padding and are not attended to",
    "missing_leads": "refused unless the caller says so (lead_mask, or allow_missing_leads=True by lead names)",
    "normalisation_applied_by": "encoder: give plain mV, unfiltered as recorded",
    "embedding": "float32 (B, embedding_dim), unit length; encoder.pt2: NaN for a row that is no ECG in mV (NaN, no "
    "recorded lead or sample, another unit by its size)",
}


@dataclass(frozen=True)
class SignalContract:
    """What the encoder was trained on, and the size of what comes out.

    sampling_rate in Hz, seconds, samples = T, leads in order, units, the normalisation inside the encoder, and the
    unit of the age, "" (and no key in the file) where the encoder reads none.
    """

    sampling_rate: float
    seconds: float
    samples: int
    normalisation: str
    embedding_dim: int
    lead_dropout: float = 0.0
    leads: tuple[str, ...] = STANDARD_LEADS
    units: str = "mV"
    age: str = ""
    lead_masking: float = 0.0

    @classmethod
    def of(
        cls,
        spec: SignalSpec,
        normalisation: str,
        embedding_dim: int,
        lead_dropout: float,
        lead_masking: float = 0.0,
        reads_age: bool = False,
    ) -> SignalContract:
        figures, age = (normalisation, embedding_dim, lead_dropout), YEARS if reads_age else ""
        return cls(spec.sampling_rate, spec.seconds, spec.samples, *figures, age=age, lead_masking=lead_masking)

    @classmethod
    def of_run(cls, spec: SignalSpec, config: RunConfig, reads_age: bool) -> SignalContract:
        """Of what a run trains on records of this form."""
        hidden = config.training.lead_dropout, config.training.masked_share
        return cls.of(spec, config.data.normalisation, config.encoder.embedding_dim, *hidden, reads_age)

    @property
    def spec(self) -> SignalSpec:
        return SignalSpec(self.sampling_rate, self.seconds)

    def to_dict(self) -> dict[str, Any]:
        new = {"age", "lead_masking"}  # contracts were without them before there was such a thing
        values = {name: value for name, value in asdict(self).items() if name not in new or value}
        meaning = MEANINGS | ({"age": MEANING} if self.age else {})
        return {"version": CONTRACT_VERSION, **values, "leads": list(self.leads), "meaning": meaning}

    @classmethod
    def from_dict(cls, values: Any) -> SignalContract:
        """Raises UserError for a version or a lead order that is not known here, and for figures that no signal has."""
        values = values if isinstance(values, dict) else {}
        if values.get("version") != CONTRACT_VERSION or values.get("leads") != list(STANDARD_LEADS):
            raise UserError(
                f"signal contract version {values.get('version')!r:.40} with leads {values.get('leads')!r:.120} is not "
                f"known here (version {CONTRACT_VERSION})",
                "load it with the release that wrote it",
            )
        try:
            contract = cls(**{k: v for k, v in values.items() if k not in ("version", "meaning", "leads")})
            wrong = contract._wrong()
        except (TypeError, ValueError, OverflowError):  # a key too many or too few, or no number where one is wanted
            wrong = "its keys or their types"
        if wrong:
            raise UserError(
                f"signal contract cannot be fulfilled: {wrong}", "fetch the encoder again, or export it anew"
            )
        return contract

    def _wrong(self) -> str:
        """What no encoder was trained on; "" when all is well."""
        rate, seconds = self.sampling_rate, self.seconds
        if not (0 < rate <= HIGHEST and 0 < seconds <= HIGHEST):  # refuses nan too
            return f"{rate:g} Hz for {seconds:g} s"
        if self.samples != self.spec.samples or not 0 < self.samples <= LONGEST:
            return f"{self.samples:g} samples at {rate:g} Hz for {seconds:g} s"
        hidden = self.lead_dropout, self.lead_masking
        if not 0 < self.embedding_dim == int(self.embedding_dim) or not all(0 <= share <= 1 for share in hidden):
            return f"embedding_dim {self.embedding_dim:g}, lead_dropout and lead_masking {hidden}"
        if self.units != "mV" or not isinstance(self.normalisation, str) or self.age not in ("", YEARS):
            return f"units {self.units!r:.40}, normalisation {self.normalisation!r:.40}, age {self.age!r:.40}"
        return ""
