# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A method of your own
#
# A method says what it asks of a batch and what the loss of the global batch is. The engine does the rest: workers,
# ZeRO, exact resume, the collapse alarm, export, evaluation. Here: the limb leads of a record find its chest leads
# among those of all records. No report is read.

# %%
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

WORK = Path(os.environ.get("CARDIALIGN_NOTEBOOK") or tempfile.mkdtemp()) / "own_method"
PACKAGE = WORK / "package"
PACKAGE.mkdir(parents=True)

# %% [markdown]
# ## The method
#
# `inputs` makes CPU tensors of a batch, `forward` encodes one micro-batch, `loss` sees the rows of this rank and speaks
# for the global batch over all ranks. A row feature called `ecg` is watched for collapse. `chance` is the loss of a
# model that sees nothing: a run that stays there is stopped.

# %%
(PACKAGE / "limbs_and_chest.py").write_text('''\
"""The limb leads of a record find its chest leads, and the other way about."""

import math
from typing import Annotated

import torch
from pydantic import Field

from cardialign.kernels.contrastive import Execution, infonce
from cardialign.pretrain.config import MethodConfig
from cardialign.pretrain.methods.base import Chance, Method, StepLoss
from cardialign.pretrain.methods.parts.two_towers import batch_signals


class LimbsAndChestConfig(MethodConfig):
    """temperature: by which cosines are divided."""

    name: str = "limbs_and_chest"
    temperature: Annotated[float, Field(ge=0.01, le=1)] = 0.1


class LimbsAndChest(Method):
    """`method.name: limbs_and_chest`."""

    Config = LimbsAndChestConfig
    reports = False

    def __init__(self, config, spec):
        super().__init__(config, spec)
        self.register_buffer("log_scale", torch.tensor([-math.log(config.method.temperature)]), persistent=False)
        self.chance = Chance(math.log(config.training.global_batch), "ln B")

    def inputs(self, batch, bank, draws):
        return batch_signals(batch, self.ecg.reads_age)

    def forward(self, inputs):
        """Features limbs and chest (b, d): what the encoder makes of six leads, the others told to be missing."""
        limb = torch.arange(12, device=inputs["lead_mask"].device) < 6
        seen = [
            self.ecg(inputs["signal"], inputs["lead_mask"] & leads, inputs.get("valid_samples")).embedding
            for leads in (limb, ~limb)
        ]
        return {"ecg": seen[0], "chest": seen[1]}

    def loss(self, features, inputs, group=None):
        loss = infonce(features["ecg"], features["chest"], self.log_scale, Execution(group=group))
        return StepLoss(loss, {"loss": loss.detach()}, self.chance)
''')

# %% [markdown]
# ## The package
#
# An entry point makes the word known to every command, on every worker. This is what `pip install` of a package with
# one leaves behind; CONTRIBUTING ("In a package of your own") has the package itself.

# %%
info = PACKAGE / "limbs_and_chest-0.1.dist-info"
info.mkdir()
(info / "METADATA").write_text("Metadata-Version: 2.1\nName: limbs_and_chest\nVersion: 0.1\n")
(info / "entry_points.txt").write_text("[cardialign.methods]\nlimbs_and_chest = limbs_and_chest:LimbsAndChest\n")
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(PACKAGE), os.environ.get("PYTHONPATH")]))
sys.path.insert(0, str(PACKAGE))

# %% [markdown]
# ## The recipe and a small set

# %%
import cardialign  # noqa: E402  (the package above is seen from here on)

(WORK / "recipe.yaml").write_text("""\
name: limbs-and-chest
encoder: {name: vit1d, size: tiny, width: 32, depth: 2, heads: 2, embedding_dim: 32}
method: {name: limbs_and_chest, temperature: 0.1}
optimizer: {lr: 1.0e-3}
training: {global_batch: 32, steps: 20, precision: fp32, log_every: 5, checkpoint_every: 20, zero_stage: 0}
""")


def command(*words: object) -> None:
    """A command line, as it would be typed."""
    subprocess.run([sys.executable, "-m", *map(str, words)], check=True)


command("cardialign", "cohort", WORK / "patients", "--patients", 40, "--sampling-rate", 100)
source = cardialign.open_source("mimic-iv-ecg", WORK / "patients")
built = cardialign.build_shards(source, WORK / "shards", cardialign.SetPlan(cardialign.SignalSpec(100, 5)), workers=1)

# %% [markdown]
# ## A training, and its encoder

# %%
run = WORK / "run"
words = ["--recipe", WORK / "recipe.yaml", "--run-dir", run, "--set", f"data.shards={built.path}"]
command("cardialign.pretrain", *words)
trace = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
losses = [line["loss"] for line in trace if "loss" in line]
print(f"loss {losses[0]:.2f} at the first step, {losses[-1]:.2f} at the last; chance is ln 32 = 3.47")

# %%
cardialign.export(run, program=False)
encoder = cardialign.load_encoder(run / "export")
record = cardialign.open_shards(built.path).read_record(0)
print(encoder.embed(record.millivolts(), sampling_rate=record.sampling_rate).shape)

# %% [markdown]
# What makes it a method that one can publish: a test of the loss against its formula written out by hand, and the
# contract that all methods are held to (ranks, micro-batch and resume change nothing). CONTRIBUTING has both.
