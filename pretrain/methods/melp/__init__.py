"""MELP (Wang et al. 2025): an ECG and its report meet as rhythm and text, beats and sentences, and word by word."""

from cardialign.pretrain.methods.melp.method import Melp

__all__ = ["Melp"]
