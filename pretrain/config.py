"""The typed, strict run configuration: one recipe (YAML) + overrides -> one `RunConfig`, or every mistake in it at once."""

from __future__ import annotations

import contextlib
import difflib
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from data_shards.errors import UsageError
from data_shards.record import STANDARD_LEADS

RECIPES = Path(__file__).parent / "recipes"

Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class DataConfig(Strict):
    """What is read, in which order, and how the signal is normalised on the device."""

    shards: Path | None = None
    folds: tuple[int, ...] | None = None
    normalisation: Literal["none", "minmax", "zscore", "lead-std"] = "none"
    patient_disjoint: bool = True
    threads: Positive = 2
    prefetch: Positive = 4


class PatchScale(Strict):
    """One parallel patch embedding: kernel and stride in milliseconds (they may overlap: stride < kernel)."""

    kernel_ms: Annotated[float, Field(gt=0)]
    stride_ms: Annotated[float, Field(gt=0)]

    @model_validator(mode="after")
    def _covers_the_signal(self) -> PatchScale:
        if self.stride_ms > self.kernel_ms:
            raise ValueError(
                f"stride_ms {self.stride_ms:g} is longer than kernel_ms {self.kernel_ms:g}: samples between patches would be skipped"
            )
        return self


class ModelConfig(Strict):
    """The ECG encoder of the main recipe. `size` sets width, depth and heads; each may be overridden."""

    size: Literal["tiny", "small", "base"] = "small"
    width: Positive | None = None
    depth: Positive | None = None
    heads: Positive | None = None
    mlp_ratio: Annotated[float, Field(gt=0)] = 4.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.0
    lead_groups: dict[str, tuple[str, ...]] = {
        "lateral": ("I", "aVL", "V5", "V6", "aVR"),
        "inferior": ("II", "III", "aVF"),
        "septal": ("V1", "V2"),
        "anterior": ("V3", "V4"),
    }
    patches: tuple[PatchScale, ...] = (
        PatchScale(kernel_ms=50, stride_ms=50),
        PatchScale(kernel_ms=100, stride_ms=100),
        PatchScale(kernel_ms=200, stride_ms=200),
    )
    pooling: Literal["attention", "resample"] = "attention"
    group_attention: Literal["se", "eca"] = "se"
    embedding_dim: Positive = 256

    @model_validator(mode="after")
    def _fill_size_and_check(self) -> ModelConfig:
        width, depth, heads = {"tiny": (64, 2, 4), "small": (256, 4, 8), "base": (512, 12, 8)}[self.size]
        for name, value in (("width", width), ("depth", depth), ("heads", heads)):
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        assert self.width is not None and self.heads is not None
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        if (self.width // self.heads) % 2:
            raise ValueError(f"width / heads = {self.width // self.heads} is odd; rotary positions need an even head size")
        if not self.patches:
            raise ValueError("patches is empty; give at least one scale")
        seen: list[str] = [lead for leads in self.lead_groups.values() for lead in leads]
        unknown = sorted(set(seen) - set(STANDARD_LEADS))
        if unknown:
            raise ValueError(f"lead_groups names unknown leads {unknown}; known: {', '.join(STANDARD_LEADS)}")
        if len(seen) != len(set(seen)):
            raise ValueError("lead_groups names a lead twice")
        if not seen or not all(self.lead_groups.values()):
            raise ValueError("lead_groups has an empty group")
        return self


class TextConfig(Strict):
    """The report encoder: `minilm` (ships with a package, no network), a Hugging Face id, or a local folder."""

    encoder: str = "minilm"
    trainable: Literal["frozen", "partial", "full"] = "frozen"
    train_layers: Positive = 6
    max_tokens: Annotated[int, Field(ge=8, le=512)] = 128
    style: Literal["sentences", "merl"] = "sentences"


class ObjectiveConfig(Strict):
    """The DiagSim-weighted InfoNCE: S from report similarity, negatives weighted by alpha(S), learnable clamped temperature."""

    name: str = "diagsim"
    similarity: Literal["embedding", "statements", "none"] = "embedding"
    weighting: Literal["ramp", "exponential", "none"] = "ramp"
    low: float = 0.3
    high: float = 0.8
    gamma: Annotated[float, Field(gt=0)] = 4.0
    drop_duplicates: bool = True
    temperature: Annotated[float, Field(gt=0)] = 0.07
    temperature_min: Annotated[float, Field(gt=0)] = 0.01
    temperature_max: Annotated[float, Field(gt=0)] = 1.0
    learn_temperature: bool = True
    chunk: Positive = 1024

    @model_validator(mode="after")
    def _ordered(self) -> ObjectiveConfig:
        if self.low >= self.high:
            raise ValueError(f"low {self.low:g} is not below high {self.high:g}")
        if not self.temperature_min <= self.temperature <= self.temperature_max:
            raise ValueError(
                f"temperature {self.temperature:g} is outside temperature_min..temperature_max ({self.temperature_min:g}..{self.temperature_max:g})"
            )
        return self


class OptimizerConfig(Strict):
    name: Literal["adamw"] = "adamw"
    lr: Annotated[float, Field(gt=0)] = 2e-4
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    betas: tuple[Fraction, Fraction] = (0.9, 0.98)
    eps: Annotated[float, Field(gt=0)] = 1e-8
    grad_clip: Annotated[float, Field(ge=0)] = 1.0


class ScheduleConfig(Strict):
    """Linear warm-up, then cosine to `min_lr_ratio` x lr. Warm-up is on by default: without a ramp both towers can collapse within 25 steps."""

    name: Literal["cosine", "constant"] = "cosine"
    warmup_fraction: Fraction = 0.1
    warmup_steps: Annotated[int, Field(ge=0)] | None = None
    min_lr_ratio: Fraction = 0.01


class TrainingConfig(Strict):
    """Global batch and duration decide the result; micro-batch, ZeRO stage and world size only decide speed and memory."""

    global_batch: Annotated[int, Field(ge=2)] = 256
    micro_batch: Positive | None = None
    steps: Positive | None = None
    epochs: Annotated[float, Field(gt=0)] | None = None
    precision: Literal["fp32", "bf16"] = "bf16"
    zero_stage: Literal[0, 1, 2, 3] = 2
    lead_dropout: Fraction = 0.0
    log_every: Positive = 10
    checkpoint_every: Positive = 200
    keep_checkpoints: Annotated[int, Field(ge=2)] = 3

    @model_validator(mode="after")
    def _one_duration(self) -> TrainingConfig:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("set exactly one of steps and epochs")
        return self


class CollapseConfig(Strict):
    """Stop with a clear message when the loss sits at ln(effective batch) or the embedding rank falls."""

    enabled: bool = True
    patience_steps: Positive = 100
    loss_margin: Annotated[float, Field(gt=0)] = 0.02
    min_rank: Annotated[float, Field(ge=1)] = 2.0


class RunConfig(Strict):
    """Everything that decides a run. `resolved()` is stored with the run; the same words are YAML keys, options and Python arguments."""

    name: str = "cardialign"
    seed: int = 0
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    text: TextConfig = TextConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    training: TrainingConfig = TrainingConfig(epochs=10)
    collapse: CollapseConfig = CollapseConfig()

    def resolved(self) -> dict[str, Any]:
        """Plain JSON-able dict with every default filled in."""
        return self.model_dump(mode="json")


REMEDIES = {
    "extra_forbidden": "remove it, or correct its spelling",
    "missing": "add it",
    "literal_error": "use one of the values listed",
}


def _nearest(key: str, location: tuple[Any, ...]) -> str:
    model: Any = RunConfig
    for part in location[:-1]:
        field = getattr(model, "model_fields", {}).get(part)
        model = field.annotation if field is not None else None
    known = list(getattr(model, "model_fields", {}))
    near = difflib.get_close_matches(str(key), known, n=1)
    return f"did you mean `{near[0]}`?" if near else f"known keys here: {', '.join(known)}" if known else REMEDIES["extra_forbidden"]


def _sentence(error: Any) -> str:
    location = tuple(error["loc"])
    key = ".".join(str(part) for part in location) or "(recipe)"
    if error["type"] == "extra_forbidden":
        return f"{key}: unknown key; {_nearest(str(location[-1]), location)}"
    message = error["msg"].removeprefix("Value error, ")
    value = error.get("input")
    shown = "" if isinstance(value, dict | list | BaseModel) or value is None else f" (got {value!r})"
    remedy = REMEDIES.get(error["type"], "")
    return f"{key}: {message}{shown}" + (f"; {remedy}" if remedy else "")


def parse_config(values: dict[str, Any], origin: str = "configuration") -> RunConfig:
    """Dict -> RunConfig. Raises UsageError naming every mistake at once: dotted key, reason, value, remedy."""
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        lines = [_sentence(e) for e in error.errors()]
        count = f"{len(lines)} mistake{'s' if len(lines) > 1 else ''}"
        raise UsageError(
            f"{origin} has {count}:\n" + "\n".join(f"  - {line}" for line in lines), "correct the keys above and run again"
        ) from None


def set_dotted(values: dict[str, Any], assignment: str) -> None:
    """Apply one `--set a.b=value` in place; the value is read as YAML. Raises UsageError when there is no `=`."""
    key, equals, text = assignment.partition("=")
    if not equals or not key.strip():
        raise UsageError(f"--set {assignment!r} is not KEY=VALUE", "write for example --set optimizer.lr=1e-3")
    *parents, last = key.strip().split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise UsageError(f"--set {assignment!r}: {parent} is not a section", "give the dotted key of a single value")
    value = yaml.safe_load(text)
    if isinstance(value, str):  # YAML 1.1 reads 1e-3 as a string
        with contextlib.suppress(ValueError):
            value = float(value)
    values[last] = value


def recipe_names() -> list[str]:
    return sorted(p.stem for p in RECIPES.glob("*.yaml"))


def load_config(recipe: str | Path, overrides: tuple[str, ...] | list[str] = ()) -> RunConfig:
    """Recipe name (see `recipe_names`) or YAML path, then `a.b=value` overrides in order. Raises UsageError."""
    path = Path(recipe)
    if not path.suffix and (RECIPES / f"{recipe}.yaml").is_file():
        path = RECIPES / f"{recipe}.yaml"
    if not path.is_file():
        raise UsageError(f"no recipe {str(recipe)!r}", f"use a YAML file or one of: {', '.join(recipe_names())}")
    try:
        values = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        raise UsageError(f"{path} is not valid YAML: {error}", "correct the line named above") from None
    if not isinstance(values, dict):
        raise UsageError(f"{path} does not hold a mapping", "write `section:` blocks with `key: value` lines")
    for assignment in overrides:
        set_dotted(values, assignment)
    return parse_config(values, str(path))
