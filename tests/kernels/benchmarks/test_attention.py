"""What is compared computes the same thing, and the counts are those of the operands.

The table shows what was measured.
"""

from __future__ import annotations

import pytest
import torch

from cardialign.kernels.attention import pack
from cardialign.kernels.benchmarks.attention import dense_job, lengths, missing_job, rotary_job
from cardialign.kernels.benchmarks.cases import Case, compared
from cardialign.kernels.benchmarks.table import amount, markdown, measured_report, plain, with_shares
from cardialign.kernels.benchmarks.timing import Job

CPU = torch.device("cpu")
SIZE = {"sequences": 6, "tokens": 10, "heads": 2, "head_width": 8}


def gradients(job: Job) -> list[torch.Tensor]:
    made = job.run()
    outputs = [made] if isinstance(made, torch.Tensor) else list(made)
    slopes = torch.autograd.grad(outputs, list(job.leaves), [torch.ones_like(output) for output in outputs])
    return [*(output.detach() for output in outputs), *slopes]


def test_the_implementations_of_one_operation_agree() -> None:
    for first, second in (
        (dense_job("math", CPU, **SIZE), dense_job("sdpa", CPU, **SIZE)),
        (rotary_job("formula", CPU, **SIZE), rotary_job("one pass", CPU, **SIZE)),
    ):
        for a, b in zip(gradients(first), gradients(second), strict=True):
            assert torch.allclose(a, b, atol=1e-5)
    mask = torch.arange(10)[None, :] < lengths(6, 10)[:, None]
    assert mask.sum() == 40  # a third of 60 is missing
    masked, packed = missing_job("masked math", CPU, **SIZE).run(), missing_job("packed sdpa", CPU, **SIZE).run()
    assert torch.allclose(pack(masked.transpose(1, 2), mask).tokens, packed, atol=1e-5)


@pytest.mark.parametrize(
    ("build", "name"), [(dense_job, "flash"), (missing_job, "packed flash"), (missing_job, "packed varlen")]
)
def test_a_library_that_is_not_there_refuses_before_anything_is_timed(build, name) -> None:
    with pytest.raises(ValueError, match="cannot serve"):
        build(name, CPU, **SIZE)


def test_a_quick_look_fills_every_row_and_the_tables_show_them() -> None:
    said: list[str] = []
    report = measured_report([CPU], quick=True, only=["attention"], progress=said.append)
    assert {row["op"] for row in report["rows"]} == {"attention", "attention, a third missing", "rotary positions"}
    assert len(said) == len(report["rows"]) + 3 and said[0].startswith("cpu 1/3 attention, sequences=16")
    for row in report["rows"]:
        assert row["both_ms"] > 0 and row["both_byte_s"] > 0 and row["both_of_copy"] > 0
    dense = [row for row in report["rows"] if row["op"] == "attention"]
    # 4 FLOPs for each of 16 x 4 heads, 100 x 100 pairs, 16 elements, and 2.5 times that backward
    assert dense[0]["both_flop_s"] * dense[0]["both_ms"] == pytest.approx(1e3 * 3.5 * 4 * 16 * 4 * 100 * 100 * 16)
    assert [row["implementation"] for row in report["rows"] if row["auto"]] == ["sdpa", "packed sdpa", "one pass"]
    (limits,) = report["devices"]
    assert dense[1]["forward_of_gemm"] == pytest.approx(dense[1]["forward_flop_s"] / limits["gemm_flop_s"])
    text = markdown(report)
    assert (
        "Measured " in text[2]
        and "`cardialign bench kernels --quick --op attention --markdown > kernels/benchmarks/FIGURES.md`" in text[2]
    )
    assert sum(line.count("(auto)") for line in text if line.startswith("|")) == 3
    assert any(line.startswith("|  | sdpa (auto) | 3 |") for line in text)
    # One line for each row, and for each case that only a GPU would have; three tables.
    tables = [line for line in text if line.startswith("|")]
    assert len(report["unmeasured"]) == 3 and all(case["implementations"] for case in report["unmeasured"])
    targets = sum(line.endswith(("in this run |", "on a GPU |")) for line in tables)
    assert len(tables) == len(report["rows"]) + 3 + targets + 3 * 2
    assert "CUDA: not measured on a GPU. What a GPU would be given:" in text
    assert len(plain(report)) == len(text) - 3  # the same without the rules under the headers


def test_what_was_not_measured_is_said_and_never_a_number() -> None:
    cuda = torch.device("cuda")
    (missing,) = compared(Case("x", "n=1", ("flash",), {}), cuda, {}, {"flash": "no package"})
    report = {
        "date": "2026-11-20", "quick": False, "only": [], "threads": 1, "versions": {"torch": "2.13"},
        "skipped": ["loss: not here"], "rows": [with_shares(missing, 4e12, 7e14)],
        "devices": [{"device": "cuda", "name": "H", "copy_byte_s": 4e12, "gemm_flop_s": 7e14}],
        "unmeasured": [], "steps": [{"recipe": "cardialign-base", "device": "cuda", "note": "no text encoder here"}],
    }  # fmt: skip
    text = markdown(report)
    assert any(line.startswith("| x, n=1 | flash | not measured: no package |") for line in text)
    assert "- `cardialign-base` on cuda: not measured: no text encoder here" in text
    assert not any("What a GPU would be given" in line for line in text) and text[-1] == "Not measured: loss: not here."
    assert (
        amount(4e12, "B/s") == "4 TB/s" and amount(12.3e6, "FLOP/s") == "12.3 MFLOP/s" and amount(5.0, "B/s") == "5 B/s"
    )
