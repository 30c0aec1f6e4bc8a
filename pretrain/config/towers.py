"""The sections that an exported encoder carries, and the bases of the two that an encoder and a method bring."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from cardialign.pretrain.config.fields import Depth, PlaceOrId, Strict, Width


class EncoderConfig(Strict):
    """The section `encoder:`.

    Every encoder has one of its own, which adds its keys; the name is a row of `pretrain.choices`.

    embedding_dim: width of the embedding, the space that is shared with reports where a method reads them.
    """

    name: str
    embedding_dim: Width = 256

    @property
    def depends_on_micro_batch(self) -> bool:
        """True where a published BatchNorm takes its statistics from micro-batches: another size is another run."""
        return False


class MethodConfig(Strict):
    """The section `method:`.

    Every method has one of its own, which adds its keys; the name is a row of `pretrain.choices`.

    harmless: keys (without `method.`) that may differ between a checkpoint and the run that continues it: they change
    speed, not what a step computes.
    trains_reports: its losses are made for a report encoder that learns too; `text.trainable: frozen` is refused.
    """

    harmless: ClassVar[tuple[str, ...]] = ()
    trains_reports: ClassVar[bool] = False

    name: str

    @property
    def depends_on_micro_batch(self) -> bool:
        """As that of an encoder, of the method's own layers."""
        return False

    @property
    def statement_vectors(self) -> bool:
        """Whether the text bank must hold the vector of each single statement; a run then makes them beforehand."""
        return False

    @property
    def distant_reports(self) -> int:
        """Of how many most distant reports of each the text bank must hold the table, which a run then makes
        beforehand; 0: of none."""
        return 0


class TextConfig(Strict):
    """The report encoder: `minilm` (ships with a package, no network), a Hugging Face id, or a local folder.

    `load_config` makes a relative folder absolute.
    pooling: how the tokens of a text become one vector: the first token or the mean over all. null = as the model's
    files say (`1_Pooling/config.json`), which they must. `last`: the text is read from left to right, and a closing
    token, which sees all of it, stands for it; for methods that make the encoder foretell the next word.
    """

    encoder: PlaceOrId = "minilm"
    pooling: Literal["cls", "mean", "last"] | None = None
    trainable: Literal["frozen", "partial", "full"] = "frozen"
    train_layers: Depth = 6
    max_tokens: Annotated[int, Field(ge=8, le=512)] = 128
    style: Literal["sentences", "merl"] = "sentences"
