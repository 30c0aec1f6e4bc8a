"""The typed, strict run configuration; `run` holds it, this folder hands on its public names."""

from cardialign.pretrain.config.run import *  # noqa: F403
