"""Runs, encoders and evaluations side by side: what can be compared, by how much they differ, and what they cost."""
