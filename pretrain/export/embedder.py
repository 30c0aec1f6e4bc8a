"""An encoder as a scikit-learn transformer: ECGs in, embeddings out, in a `Pipeline`, a grid search or a pickle.

Users import it as `from cardialign.sklearn import EcgEmbedder`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin

from cardialign.data_shards.errors import UsageError, UserError
from cardialign.data_shards.record import STANDARD_LEADS
from cardialign.pretrain.export.given_signal import CONVERSIONS


class EcgEmbedder(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """ECGs (n, L, T) -> embeddings float32 (n, e), unit rows, by an encoder that is not trained further.

    encoder              folder of an exported or pulled encoder, or what else `cardialign.load_encoder` opens
    sampling_rate        Hz of the ECGs that are given
    leads                names of their second axis; None: the standard twelve in their usual order
    units                "mV" or "uV"
    allow                words of conversions that are allowed, as in `LoadedEncoder.embed`: "resample", "crop",
                         "derive_limb_leads", "allow_missing_leads"; what differs is refused without them
    device               where it computes

    `fit` opens the encoder and learns nothing. Attributes then: `digest_` of the encoder, `n_features_out_`.
    A pickle holds the settings and the digest, not the weights: where it is loaded, `encoder` must be the same one.

    Raises UserError, as `embed` does, for ECGs that do not fit the encoder's signal contract, and for another encoder
    in the place of the one that was fitted with.
    """

    def __init__(
        self,
        encoder: str | Path = "",
        *,
        sampling_rate: float | None = None,
        leads: Any = None,
        units: str = "mV",
        allow: tuple[str, ...] = (),
        device: str = "cpu",
    ) -> None:
        self.encoder = encoder
        self.sampling_rate = sampling_rate
        self.leads = leads
        self.units = units
        self.allow = allow
        self.device = device

    def fit(self, X: Any, y: Any = None) -> EcgEmbedder:
        """Open the encoder. X: one ECG or more, of which one is looked at; y is ignored."""
        for name in ("_opened", "digest_", "n_features_out_"):
            self.__dict__.pop(name, None)
        opened = self._open()
        self.n_features_out_ = int(self._embed(opened, _ecgs(X)[:1]).shape[1])
        self.digest_ = opened.digest
        return self

    def transform(self, X: Any) -> np.ndarray:
        """X: (n, L, T) in `units` -> float32 (n, e). What was never fitted is opened now."""
        return self._embed(self._open(), _ecgs(X))

    def _embed(self, opened: Any, signal: np.ndarray) -> np.ndarray:
        found: np.ndarray = opened.embed(
            signal,
            sampling_rate=self.sampling_rate,
            leads=STANDARD_LEADS if self.leads is None else self.leads,
            units=self.units,
            **dict.fromkeys(self.allow, True),
        )
        return found

    def _open(self) -> Any:
        """The encoder of these settings, opened once."""
        from cardialign.pretrain.export.opening import open_encoder

        if isinstance(self.sampling_rate, bool) or not isinstance(self.sampling_rate, int | float):
            raise UsageError(
                f"EcgEmbedder: sampling_rate is {self.sampling_rate!r}", "give the rate of your ECGs in Hz: 500"
            )
        listed = isinstance(self.allow, tuple | list | set | frozenset)
        if not listed or any(not isinstance(word, str) or word not in CONVERSIONS for word in self.allow):
            raise UsageError(
                f"EcgEmbedder: allow is {self.allow!r}", f"give a tuple of some of {', '.join(map(repr, CONVERSIONS))}"
            )
        asked = str(self.encoder), str(self.device)
        if asked[0].startswith("models:/"):
            raise UsageError(
                f"EcgEmbedder: {asked[0]} is an address of a registry",
                "fetch it once with `cardialign registry pull`, and give the folder",
            )
        kept = self.__dict__.get("_opened")
        if kept is not None and kept[0] == asked:
            return kept[1]
        if not asked[0].strip():
            raise UsageError("EcgEmbedder: no encoder is named", "give the folder of an exported encoder")
        opened = open_encoder(asked[0], asked[1])
        fitted = self.__dict__.get("digest_")
        if fitted is not None and opened.digest != fitted:
            raise UserError(
                f"EcgEmbedder: {asked[0]} holds encoder {opened.digest[:12]}, and was fitted with {fitted[:12]}",
                "put the encoder back that it was fitted with, or fit again",
            )
        self._opened = asked, opened
        return opened

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()
        return {name: value for name, value in state.items() if name != "_opened"}

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        tags.input_tags.two_d_array, tags.input_tags.three_d_array = False, True
        return tags

    @property
    def _n_features_out(self) -> int:
        return self.n_features_out_


def _ecgs(X: Any) -> np.ndarray:
    try:
        signal = np.asanyarray(X)  # a masked array stays one, which `embed` refuses
    except ValueError:  # a list of ECGs of different lengths
        signal = np.empty(len(X), dtype=object)
    if signal.ndim != 3:
        shape = " x ".join(map(str, signal.shape)) or "one number"
        raise UsageError(
            f"EcgEmbedder: X is {shape}, not ECGs x leads x samples",
            "give an array of shape (n, leads, samples), such as np.stack(list_of_ecgs)",
        )
    return signal


EcgEmbedder.__module__ = "cardialign.sklearn"  # what pickles name; the room behind it may move
