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
# # The consumer: one ECG, four ways into an encoder
#
# All that is needed is the folder of an export: `cardialign registry pull NAME@ALIAS FOLDER` brings one. In
# `CARDIALIGN_EXPORT` you name yours; else a small untrained one is made here.

# %%
import json
import os
import tempfile
from pathlib import Path

import numpy as np

import cardialign

WORK = Path(os.environ.get("CARDIALIGN_NOTEBOOK") or tempfile.mkdtemp()) / "consumer"
WORK.mkdir(parents=True)


def untrained_export(folder: Path) -> Path:
    """An encoder with fresh weights, exported as a finished one would be. A consumer never does this."""
    from cardialign.pretrain.config import parse_config
    from cardialign.pretrain.export.write import export_encoder
    from cardialign.pretrain.methods.base import create_method

    spec = cardialign.SignalSpec(100, 2.5)
    config = parse_config({"encoder": {"name": "resnet1d", "width": 8}, "method": {"name": "simclr"}})
    return export_encoder(config, create_method(config, spec).state_dict(), folder, training={}, spec=spec)


export = Path(os.environ.get("CARDIALIGN_EXPORT") or untrained_export(WORK / "export"))
print(sorted(path.name for path in export.iterdir()))

# %% [markdown]
# ## The signal contract
#
# Leads and their order, unit, rate, length. Read it before anything else, and the folder's `README.md`.

# %%
contract = json.loads((export / "signal_contract.json").read_text())
print({key: contract[key] for key in ("leads", "units", "sampling_rate", "seconds")})

# %% [markdown]
# ## One ECG
#
# Ten ECGs of virtual people lie in every export, with the embeddings that must come out. Signals are microvolts there.

# %%
from safetensors.numpy import load_file  # noqa: E402

golden = load_file(export / "golden.safetensors")
millivolts = golden["signal"][0].astype(np.float32) / 1000
rate, wanted = contract["sampling_rate"], golden["embedding"][0]

# %% [markdown]
# ## In this library

# %%
encoder = cardialign.load_encoder(export)
ours = encoder.embed(millivolts, sampling_rate=rate)
print(ours.shape, "differs from what must come out by", float(np.abs(ours - wanted).max()))

# %% [markdown]
# It compares rate, leads and unit, and refuses what it would have to guess. The same numbers called microvolts are an
# ECG of a thousandth of the height:

# %%
try:
    encoder.embed(millivolts * 1000, sampling_rate=rate)
except cardialign.UserError as error:
    print(error)

# %% [markdown]
# ## In scikit-learn

# %%
from cardialign.sklearn import EcgEmbedder  # noqa: E402

embedder = EcgEmbedder(str(export), sampling_rate=rate)
features = embedder.fit_transform(millivolts[None])
print(features.shape)

# %% [markdown]
# ## In transformers
#
# Offline, and without code of the folder.

# %%
from transformers import AutoModel  # noqa: E402

import cardialign.transformers  # noqa: E402

model = AutoModel.from_pretrained(str(export))
theirs = model(millivolts[None], sampling_rate=rate).pooler_output.detach().numpy()[0]

# %% [markdown]
# ## In plain torch
#
# A program and three tensors; nothing of this library. It cannot raise an error: a row that is no ECG in mV comes back
# as NaN.

# %%
import torch  # noqa: E402

program = torch.export.load(export / "encoder.pt2").module()
signal = torch.from_numpy(np.stack([millivolts, millivolts * 1000]))
leads, valid = torch.ones(2, 12, dtype=torch.bool), torch.full((2,), signal.shape[-1])
plain = program(signal, leads, valid)
print("the ECG:", plain[0, :3].tolist(), "in microvolts:", plain[1, :3].tolist())

# %% [markdown]
# All ways say the same.

# %%
for name, each in (("library", ours), ("transformers", theirs), ("plain torch", plain[0].detach().numpy())):
    difference = float(np.abs(np.asarray(each).reshape(-1) - wanted).max())
    print(f"{name:13} {difference:.1e}")
    assert difference < 1e-5, name
