"""Who may take a Triton kernel: nobody, everybody, or those whom a table measured on this very device allows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from cardialign.kernels import dispatch
from cardialign.kernels.dispatch import OPT_IN, triton_by_default

CUDA = torch.device("cuda")


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A table of the device that is here, for the kernels of the loss from a million logits on."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    path = tmp_path / "kernels.json"
    versions = {"triton": dispatch._triton_version()}
    path.write_text(
        json.dumps(
            {
                "device": "NVIDIA H200",
                "versions": versions,
                "kernels_from": {"contrastive": 1 << 20, "patch-embed": None},
            }
        )
    )
    monkeypatch.setenv(OPT_IN, str(path))
    return path


@pytest.mark.parametrize(("setting", "allowed"), [("0", False), ("1", True)])
def test_a_switch_holds_for_every_operation(setting: str, allowed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OPT_IN, setting)
    assert triton_by_default() is allowed and triton_by_default("contrastive", 1, CUDA) is allowed


@pytest.mark.parametrize("setting", [None, ""])
@pytest.mark.parametrize(
    ("capability", "logits", "allowed"),
    [((9, 0), 1 << 30, True), ((9, 0), 1, False), ((8, 0), 1 << 30, False), ((10, 0), 1 << 30, False)],
)
def test_without_a_switch_kernels_run_where_they_were_measured(
    setting: str | None, capability: tuple[int, int], logits: int, allowed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(OPT_IN, raising=False)
    if setting is not None:
        monkeypatch.setenv(OPT_IN, setting)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert triton_by_default("contrastive", logits, CUDA) is allowed
    assert triton_by_default("rotary", logits, CUDA) is allowed
    assert not triton_by_default() and not triton_by_default("contrastive", 1 << 30, torch.device("cpu"))


def test_the_rotary_kernel_serves_a_micro_batch_of_the_main_recipe() -> None:
    """128 records, four lead groups, patches of 200 ms (the fewest tokens: 50), width 384: queries, keys, values."""
    assert dispatch.MEASURED[9, 0]["rotary"] <= 128 * 4 * 50 * 3 * 384


def test_a_table_allows_the_sizes_at_which_the_kernel_won(table: Path) -> None:
    assert triton_by_default("contrastive", 1 << 20, CUDA) and not triton_by_default("contrastive", (1 << 20) - 1, CUDA)
    assert not triton_by_default("patch-embed", 1 << 40, CUDA)
    assert not triton_by_default("contrastive", 1 << 30, torch.device("cpu")) and not triton_by_default()


@pytest.mark.parametrize("change", [{"device": "NVIDIA A100"}, {"versions": {"triton": "1.0"}}])
def test_a_table_of_another_device_or_triton_allows_nothing(table: Path, change: dict[str, object]) -> None:
    table.write_text(json.dumps({**json.loads(table.read_text()), **change}))
    assert not triton_by_default("contrastive", 1 << 30, CUDA)


def test_a_table_that_cannot_be_read_is_an_error_with_the_remedy(table: Path) -> None:
    table.write_text("{}")
    with pytest.raises(ValueError, match=r"CARDIALIGN_TRITON=.*is not a dispatch table.*--write-dispatch"):
        triton_by_default("contrastive", 1 << 30, CUDA)
