"""Pretraining methods, one file each. `pretrain.choices.METHODS` is the table of their names."""
