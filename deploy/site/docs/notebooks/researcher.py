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
# # The researcher: files to shards, a recipe, a training, and what was learnt
#
# Everything is small, so that it takes less than a minute on two cores. The steps are those of a real run.

# %%
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import cardialign

WORK = Path(os.environ.get("CARDIALIGN_NOTEBOOK") or tempfile.mkdtemp()) / "researcher"


def command(*words: object) -> None:
    """A command line, as it would be typed."""
    subprocess.run([sys.executable, "-m", *map(str, words)], check=True)


# %% [markdown]
# ## Files
#
# Virtual patients in the layout of MIMIC-IV-ECG: WFDB files, `record_list.csv`, machine statements, and the truth.

# %%
for name, seed in (("patients", 0), ("unseen", 1)):
    command("cardialign", "cohort", WORK / name, "--patients", 30, "--seed", seed, "--sampling-rate", 100)

# %% [markdown]
# ## Shards
#
# A source reads a publisher's layout; the plan says what every record is conformed to. Here 100 Hz and 5 s.

# %%
sets = {}
for name in ("patients", "unseen"):
    root = WORK / name
    source = cardialign.open_source("mimic-iv-ecg", root, labels=root / "truth.csv")
    plan = cardialign.SetPlan(cardialign.SignalSpec(100, 5))
    sets[name] = cardialign.build_shards(source, WORK / f"{name}-shards", plan, workers=1)
    print(name, sets[name].records, "records,", sets[name].rejected or "none rejected")

# %%
shards = cardialign.open_shards(sets["patients"].path)
record = shards.read_record(7)
print(record.key, record.statements, record.millivolts().shape)
cardialign.draw_ecg(record, WORK / "ecg.png")

# %% [markdown]
# ## A recipe
#
# A recipe of your own says only what is other than in one that is there.

# %%
(WORK / "mine.yaml").write_text("""\
extends: cardialign-tiny
name: mine
encoder: {width: 32, depth: 1, heads: 2, beat: true, rhythm: true, pooling: max}
training: {global_batch: 32, epochs: null, steps: 8, precision: fp32, log_every: 4, checkpoint_every: 8}
""")
config = cardialign.load_recipe(WORK / "mine.yaml")
print(config.method.name, config.encoder.name, config.optimizer.lr, config.training.steps)

# %% [markdown]
# ## A training
#
# `cardialign pretrain` and `cardialign.train` place workers with Ray. A single worker needs no Ray: this is what each
# of them runs.

# %%
command("cardialign", "text-bank", "build", sets["patients"].path)
run = WORK / "run"
place = f"data.shards={sets['patients'].path}"
command("cardialign.pretrain", "--recipe", WORK / "mine.yaml", "--run-dir", run, "--set", place)

# %%
trace = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
losses = [line["loss"] for line in trace if "loss" in line]
print(f"loss {losses[0]:.2f} at the first step, {losses[-1]:.2f} at the last")

# %% [markdown]
# ## What was learnt
#
# Words of a class against ECGs of patients that nobody trained on, beside the same encoder with fresh weights. After 8
# steps there is little to see; `make demo` has twenty times as many.

# %%
cardialign.export(run, program=False)
encoder = cardialign.load_encoder(run / "export")
unseen = cardialign.open_shards(sets["unseen"].path)
for name, each in (("trained", encoder), ("untrained", encoder.untrained())):
    result = cardialign.evaluate(each, unseen, prompts="virtual-findings-v2", bootstrap=100)
    print(f"{name:10} macro AUROC {result.macro:.3f} ({result.low:.3f}-{result.high:.3f})")
