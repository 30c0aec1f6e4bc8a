"""The typed, strict run configuration: one recipe (YAML) + overrides -> one `RunConfig`, or every mistake in it at once."""

from __future__ import annotations

import contextlib
import difflib
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cardialign.data_shards.errors import UsageError
from cardialign.data_shards.locations import url_of
from cardialign.data_shards.order.mixture import slots_of
from cardialign.data_shards.record import STANDARD_LEADS
from cardialign.data_shards.shard_set.splits import FRACTIONS, SALT, SplitRule
from cardialign.pretrain.methods import OBJECTIVES

RECIPES = Path(__file__).parents[1] / "recipes"

Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


def _refuse(problems: list[str]) -> None:
    """One line per problem, each "what is wrong; what to do"; `parse_config` shows them all."""
    if problems:
        raise ValueError("\n".join(problems))


class MixturePart(Strict):
    """One shard set of a mixture. Its share of every global batch is its weight over the sum of weights; folds and split: null = those of `data`."""

    shards: Path
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    folds: tuple[int, ...] | None = None
    split: Literal["train", "val", "test"] | None = None


class DataConfig(Strict):
    """What is read, in which order, and how the signal is normalised on the device.

    shards: one shard set, a folder or a URL; or mixture: several with weights. One of the two, never both. `load_config` takes a relative folder,
    in either place, from where the command runs.
    window: shuffle within windows of this many shards, for object storage; null = over the whole set.
    max_bad_fraction: share of the selected records that may turn out unreadable and be replaced (at least one record); 0 stops at the first.
    slow_read_seconds: a read that takes longer is logged while it hangs.
    """

    shards: Path | None = None
    mixture: tuple[MixturePart, ...] = ()
    folds: tuple[int, ...] | None = None
    normalisation: Literal["none", "minmax", "zscore", "lead-std"] = "none"
    patient_disjoint: bool = True
    split: Literal["train", "val", "test"] | None = None
    split_fractions: tuple[Fraction, Fraction, Fraction] = FRACTIONS
    split_salt: str = SALT
    window: Positive | None = None
    threads: Positive = 2
    prefetch: Positive = 4
    max_bad_fraction: Fraction = 0.001
    slow_read_seconds: Annotated[float, Field(gt=0)] = 30.0

    @model_validator(mode="after")
    def _fractions_are_a_split(self) -> DataConfig:
        if abs(sum(self.split_fractions) - 1) > 1e-9:
            _refuse(
                [
                    f"split_fractions {list(self.split_fractions)} do not sum to 1; give train, val and test, e.g. [0.8, 0.1, 0.1]"
                ]
            )
        return self

    @model_validator(mode="after")
    def _one_source(self) -> DataConfig:
        problems = []
        if self.shards is not None and self.mixture:
            problems.append("shards and mixture are both set; keep one of them (the other to null or [])")
        seen = [(str(part.shards), part.folds, part.split) for part in self.mixture]
        for shards, folds, split in sorted({entry for entry in seen if seen.count(entry) > 1}, key=str):
            problems.append(
                f"mixture names {shards} twice with folds {folds} and split {split}; name it once and add up the weights"
            )
        _refuse(problems)
        return self

    @property
    def parts(self) -> tuple[MixturePart, ...]:
        """The shard sets to read, one or several, with the folds and the split that apply to each; empty when none is named."""
        named = (MixturePart(shards=self.shards),) if self.shards is not None else self.mixture
        inherited = ("folds", "split")
        return tuple(
            part.model_copy(update={name: getattr(self, name) for name in inherited if getattr(part, name) is None})
            for part in named
        )

    def split_rule(self, part: MixturePart) -> SplitRule | None:
        """What `ShardSet.select` takes for one of `parts`; None when no split is set."""
        return None if part.split is None else SplitRule(part.split, self.split_salt, self.split_fractions)


class PatchScale(Strict):
    """One parallel patch embedding: kernel and stride in milliseconds (they may overlap: stride < kernel)."""

    kernel_ms: Annotated[float, Field(gt=0)]
    stride_ms: Annotated[float, Field(gt=0)]

    @model_validator(mode="after")
    def _covers_the_signal(self) -> PatchScale:
        if self.stride_ms > self.kernel_ms:
            _refuse(
                [
                    f"stride_ms {self.stride_ms:g} is longer than kernel_ms {self.kernel_ms:g}: samples between patches would be skipped; "
                    f"set stride_ms to {self.kernel_ms:g} or less"
                ]
            )
        return self


class ModelConfig(Strict):
    """The ECG encoder of the main recipe. `size` sets width, depth and heads; each may be overridden.

    attention: `packed` leaves out the tokens of padded samples and of missing lead groups instead of masking them: same result, less work where
    much is missing."""

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
    attention: Literal["dense", "packed"] = "dense"
    embedding_dim: Positive = 256

    @model_validator(mode="after")
    def _fill_size_and_check(self) -> ModelConfig:
        width, depth, heads = {"tiny": (64, 2, 4), "small": (256, 4, 8), "base": (512, 12, 8)}[self.size]
        for name, value in (("width", width), ("depth", depth), ("heads", heads)):
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        assert self.width is not None and self.heads is not None
        problems = []
        if self.width % self.heads:
            problems.append(
                f"width {self.width} is not a multiple of heads {self.heads}; choose another width or heads"
            )
        elif (self.width // self.heads) % 2:
            problems.append(
                f"width / heads = {self.width // self.heads} is odd; choose an even head size (rotary positions turn pairs)"
            )
        if not self.patches:
            problems.append("patches is empty; give at least one scale, e.g. {kernel_ms: 100, stride_ms: 100}")
        seen: list[str] = [lead for leads in self.lead_groups.values() for lead in leads]
        unknown = sorted(set(seen) - set(STANDARD_LEADS))
        if unknown:
            problems.append(
                f"lead_groups names unknown leads {', '.join(unknown)}; known leads: {', '.join(STANDARD_LEADS)}"
            )
        twice = sorted({lead for lead in seen if seen.count(lead) > 1})
        if twice:
            problems.append(f"lead_groups names {', '.join(twice)} more than once; keep each lead in one group")
        if not seen or not all(self.lead_groups.values()):
            problems.append("lead_groups has an empty group; give it leads or remove it")
        _refuse(problems)
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
    similarity_dim: Positive | None = None
    temperature: Annotated[float, Field(gt=0)] = 0.07
    temperature_min: Annotated[float, Field(gt=0)] = 0.01
    temperature_max: Annotated[float, Field(gt=0)] = 1.0
    learn_temperature: bool = True
    chunk: Positive = 1024
    scheme: Literal["auto", "gather", "ring"] = "auto"

    @model_validator(mode="after")
    def _ordered(self) -> ObjectiveConfig:
        problems = []
        if self.name not in OBJECTIVES:
            problems.append(f"unknown objective {self.name!r}; known: {', '.join(OBJECTIVES)}")
        if self.low >= self.high:
            problems.append(
                f"low {self.low:g} is not below high {self.high:g}; negatives are full below low and gone above high"
            )
        if not self.temperature_min <= self.temperature <= self.temperature_max:
            problems.append(
                f"temperature {self.temperature:g} is outside temperature_min..temperature_max ({self.temperature_min:g}..{self.temperature_max:g}); "
                "move it inside or widen the bounds"
            )
        _refuse(problems)
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
            given = (
                "neither steps nor epochs is set"
                if self.steps is None
                else f"steps {self.steps} and epochs {self.epochs:g} are both set"
            )
            _refuse([f"{given}; set exactly one of them (the other to null)"])
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

    @model_validator(mode="after")
    def _every_set_has_a_slot(self) -> RunConfig:
        if self.data.mixture:
            try:
                slots_of([part.weight for part in self.data.mixture], self.training.global_batch)
            except UsageError as error:
                _refuse([f"data.mixture: {error.problem}; {error.remedy}"])
        return self

    def resolved(self) -> dict[str, Any]:
        """Plain JSON-able dict with every default filled in."""
        return self.model_dump(mode="json")


REMEDIES = {
    "missing": "add it",
    "greater_than": "give a larger number",
    "greater_than_equal": "give a larger number",
    "less_than": "give a smaller number",
    "less_than_equal": "give a smaller number",
    "int_from_float": "write it without decimals",
    "int_type": "write a whole number",
    "int_parsing": "write a whole number",
    "float_type": "write a number",
    "float_parsing": "write a number",
    "bool_type": "write true or false",
    "bool_parsing": "write true or false",
    "string_type": "write text, in quotes if it looks like a number",
    "tuple_type": "write a list, e.g. [a, b]",
    "too_long": "give fewer values",
    "too_short": "give more values",
    "dict_type": "write `name: value` lines under it",
    "model_type": "write `key: value` lines under it",
}


def _known_keys(location: tuple[Any, ...]) -> list[str]:
    """Keys of the section that `location` points into; through lists (patches) and sections."""
    model: Any = RunConfig
    for part in location[:-1]:
        if isinstance(part, str):
            field = getattr(model, "model_fields", {}).get(part)
            model = field.annotation if field is not None else None
            model = next((a for a in get_args(model) if hasattr(a, "model_fields")), model)
    return list(getattr(model, "model_fields", {}))


def _nearest(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f"did you mean `{near[0]}`?" if near else ""


def _sentences(error: Any) -> list[str]:
    """One pydantic error -> lines "dotted.key: what is wrong (value); what to do"."""
    location = tuple(error["loc"])
    key = ".".join(str(part) for part in location) or "(recipe)"
    kind, value = error["type"], error.get("input")
    if kind == "extra_forbidden":
        known = _known_keys(location)
        return [f"{key}: unknown key; {_nearest(str(location[-1]), known) or 'known keys here: ' + ', '.join(known)}"]
    if kind == "literal_error":
        words = error["ctx"]["expected"].replace(" or ", ", ").replace("'", "").split(", ")
        return [
            f"{key}: {value!r} is not one of {', '.join(words)}; {_nearest(str(value), words) or 'use one of these'}"
        ]
    shown = "" if isinstance(value, dict | list | BaseModel) else f" (got {value!r})"
    if kind == "value_error":
        return [f"{key}: {line}" for line in error["msg"].removeprefix("Value error, ").splitlines()]
    reason = (
        (error["msg"][:1].lower() + error["msg"][1:])
        .replace("valid tuple", "list")
        .replace("valid dictionary", "mapping")
    )
    return [f"{key}: {reason}{shown}; {REMEDIES.get(kind, 'correct the value')}"]


def parse_config(values: dict[str, Any], origin: str = "configuration") -> RunConfig:
    """Dict -> RunConfig. Raises UsageError naming every mistake at once: dotted key, reason, value, remedy."""
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        lines = [line for e in error.errors() for line in _sentences(e)]
        count = f"{len(lines)} mistake{'s' if len(lines) > 1 else ''}"
        raise UsageError(
            f"{origin} has {count}:\n" + "\n".join(f"  - {line}" for line in lines),
            "correct the keys above and run again",
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
            raise UsageError(
                f"--set {assignment!r}: {parent} is not a section", "give the dotted key of a single value"
            )
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
    _place_shards(values)
    return parse_config(values, str(path))


def _place_shards(values: dict[str, Any]) -> None:
    """Relative folders of `data.shards` and `data.mixture` -> absolute ones, in place: workers and later starts of a run have other working folders."""
    data = values.get("data")
    if not isinstance(data, dict):
        return
    mixture = data.get("mixture")
    for section in [data, *(mixture if isinstance(mixture, list) else [])]:
        if isinstance(section, dict) and isinstance(section.get("shards"), str):
            section["shards"] = url_of(section["shards"]) or str(Path(section["shards"]).expanduser().absolute())
