"""`cardialign bench kernels` prints one JSON object, or the Markdown to paste, and says what it cannot measure."""

from __future__ import annotations

import torch

from cardialign.cluster.commands.bench import kernels as bench_kernels


def test_one_operation_at_a_glance(cardialign) -> None:
    threads = torch.get_num_threads()
    answer = cardialign("bench", "kernels", "--quick", "--op", "attention", "--device", "cpu")
    assert answer.code == 0 and answer.json["threads"] == 1
    assert {row["implementation"] for row in answer.json["rows"]} >= {"math", "sdpa", "packed sdpa"}
    assert torch.get_num_threads() == threads
    assert answer.json["steps"] == []  # a step belongs to the whole report
    lines = bench_kernels.summary({**answer.json, "markdown": True})
    assert any(line.startswith("|  | sdpa (auto) | ") for line in lines)
    assert not any(line.startswith("|") for line in bench_kernels.summary({**answer.json, "markdown": False}))


def test_what_cannot_be_measured_is_refused_with_the_remedy(cardialign) -> None:
    answer = cardialign("bench", "kernels", "--op", "levitation")
    assert answer.code == 2 and "contrastive, ranks, patch-embed, attention, step" in answer.json["remedy"]
    answer = cardialign("bench", "kernels", "--step", "cardialign-base", "--device", "cpu")
    assert answer.code == 2 and "on a CPU takes minutes" in answer.json["problem"]
    assert cardialign("bench", "kernels", "--threads", 0).code == 2
    answer = cardialign("bench", "kernels", "--write-dispatch", "kernels.json", "--device", "cpu")
    assert answer.code == 2 and "needs figures of a GPU" in answer.json["problem"]
