"""Completing reports by a language model: asked once per distinct report, believed only where the ECG agrees."""
