"""The loss trace survives crashes and resumes."""

from cardialign.pretrain.run.trace import TraceWriter, read_trace


def test_lines_come_back_and_a_torn_line_is_dropped(tmp_path):
    with TraceWriter(tmp_path, 0) as trace:
        for step in (1, 2):
            trace.write(step, {"loss": step / 2, "digest": "ab"})
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 3, "lo')
    assert read_trace(tmp_path) == [{"step": 1, "loss": 0.5, "digest": "ab"}, {"step": 2, "loss": 1.0, "digest": "ab"}]


def test_resuming_drops_the_steps_that_are_run_again(tmp_path):
    with TraceWriter(tmp_path, 0) as trace:
        for step in range(1, 6):
            trace.write(step, {"loss": 1.0})
    with TraceWriter(tmp_path, 3) as trace:
        assert [line["step"] for line in read_trace(tmp_path)] == [1, 2, 3]
        trace.write(4, {"loss": 2.0})
    assert [(line["step"], line["loss"]) for line in read_trace(tmp_path)] == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 2.0)]


def test_no_trace_is_an_empty_one(tmp_path):
    assert read_trace(tmp_path) == []
