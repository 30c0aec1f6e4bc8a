"""Batch bookkeeping and parameter groups, without processes."""

import os
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from cardialign.data_shards.errors import UserError
from cardialign.data_shards.order.contract import local_slice
from cardialign.data_shards.record import SignalSpec
from cardialign.pretrain.config import RunConfig
from cardialign.pretrain.methods.base import create_method
from cardialign.pretrain.training.engine import deepspeed_config, parameter_groups, plan_batches, start_workers


@given(world=st.integers(1, 9), extra=st.integers(0, 60), micro=st.none() | st.integers(1, 40))
def test_every_rank_runs_the_same_number_of_micro_batches_and_every_row_once(world, extra, micro):
    batch = world + extra
    plan = plan_batches(batch, world, micro)
    for rank in range(world):
        part = local_slice(batch, rank, world)
        rows = part.stop - part.start
        slices = plan.slices(rows)
        assert len(slices) == plan.micro_batches
        assert [i for s in slices for i in range(rows)[s]] == list(range(rows))
        assert max(s.stop - s.start for s in slices) <= plan.micro_batch
        assert micro is None or plan.micro_batch <= micro


def test_a_batch_smaller_than_the_workers_is_refused():
    with pytest.raises(UserError, match=r"global_batch 3 is smaller than the 4 workers"):
        plan_batches(3, 4, None)


def test_biases_norms_and_temperature_do_not_decay():
    torch.manual_seed(0)
    model = create_method(RunConfig(encoder={"size": "tiny", "depth": 1}), SignalSpec(100.0, 2.5))
    decayed, rest = parameter_groups(model, 0.3)
    assert decayed["weight_decay"] == 0.3 and rest["weight_decay"] == 0.0
    names = {id(p): name for name, p in model.named_parameters()}
    grouped = [id(p) for group in (decayed, rest) for p in group["params"]]
    assert sorted(grouped) == sorted(names)
    in_decayed = {names[id(p)] for p in decayed["params"]}
    assert all(p.ndim >= 2 for p in decayed["params"])
    assert not [name for name in in_decayed if "bias" in name or "norm" in name or "ln_" in name or "log_scale" in name]
    linear = {f"{path}.weight" for path, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert linear and linear <= in_decayed


def test_frozen_parameters_are_in_no_group():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    model[0].requires_grad_(False)
    assert sum(len(group["params"]) for group in parameter_groups(model, 0.1)) == 2


def test_bf16_keeps_master_weights_and_no_hidden_schedule():
    config = RunConfig()
    settings = deepspeed_config(config, plan_batches(256, 4, 16))
    assert settings["torch_autocast"] == {"enabled": True, "dtype": "bfloat16"}
    assert settings["zero_optimization"]["stage"] == 2 and settings["gradient_clipping"] == 1.0
    assert settings["gradient_accumulation_steps"] == 4 and "scheduler" not in settings


@pytest.mark.slow
@pytest.mark.parametrize("spare", [0, 6, 12])
def test_workers_that_cannot_meet_for_the_limit_of_open_files_say_so(spare: int) -> None:
    program = (
        "import os, resource, sys, deepspeed\n"
        "from contextlib import suppress\n"
        "from cardialign.data_shards.errors import UserError\n"
        "from cardialign.pretrain.training.engine import start_workers\n"
        "deepspeed.ops.__compatible_ops__ if sys.argv[1] != '0' else None\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))\n"
        "held = []\n"
        "with suppress(OSError):\n"
        "    while True: held.append(os.open(os.devnull, os.O_RDONLY))\n"
        "for _ in range(int(sys.argv[1])): os.close(held.pop())\n"
        "try: start_workers(5.0)\n"
        "except UserError as error: told = error.remedy\n"
        "for each in held: os.close(each)\n"
        "print('TOLD', told, flush=True)\n"
        "os._exit(0)\n"
    )
    words = [sys.executable, "-c", program, str(spare)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=240, check=False)
    assert "TOLD raise the limit of open files" in done.stdout, done.stderr[-2000:]


@pytest.mark.slow
def test_what_a_lone_run_leaves_in_the_environment_does_not_stop_one_started_from_it() -> None:
    program = (
        "import os, subprocess, sys\n"
        "import torch.distributed as dist\n"
        "from cardialign.pretrain.training.engine import start_workers\n"
        "workers = start_workers(5.0)\n"
        "assert (workers.rank, workers.world_size, dist.get_backend()) == (0, 1, 'gloo')\n"
        "if sys.argv[1] == '2': sys.exit(subprocess.call([*sys.orig_argv[:-1], '1']))\n"
    )
    kept = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    words = [sys.executable, "-c", program, "2"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=240, check=False, env=kept)
    assert done.returncode == 0, done.stderr[-2000:]


def test_an_environment_that_names_half_a_meeting_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "is_initialized", lambda: False)  # other tests of this process may have met
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match=r"names 2 workers .* but not MASTER_ADDR, MASTER_PORT"):
        start_workers(5.0)


def test_deepspeed_is_imported_without_its_tuners_mlflow_which_can_be_imported_afterwards() -> None:
    code = (
        "import sys\n"
        "from cardialign.pretrain.training.engine import start_workers\n"
        "start_workers()\n"
        "print('deepspeed' in sys.modules, 'mlflow' in sys.modules)\n"
        "import mlflow.entities\n"
        "print(mlflow.entities.Metric.__name__)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=180, check=True)
    assert done.stdout.split() == ["True", "False", "Metric"]
