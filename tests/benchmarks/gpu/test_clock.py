"""What is read from the clock and from a profile."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks.gpu.clock import WORK, Marks, busy, medians, read_trace, repeated, traced


def test_busy_counts_what_overlaps_once():
    assert busy([(5.0, 6.0), (0.0, 2.0), (1.0, 3.0), (1.5, 2.5)]) == 4.0
    assert busy([]) == 0.0


def event(cat: str, name: str, start: float, length: float) -> dict:
    return {"ph": "X", "cat": cat, "name": name, "ts": start, "dur": length}


def test_a_trace_tells_kernels_gaps_and_waits(tmp_path):
    """Microseconds: work from 100 to 200 but for 140 to 170, in which the host waits; it waits again when the work
    is asked for, as a profile does at its end.
    """
    events = [
        event("kernel", "gemm", 100, 30), event("kernel", "gemm", 120, 20), event("gpu_memcpy", "HtoD", 170, 30),
        event("cuda_runtime", "cudaLaunchKernel", 90, 2), event("cuda_runtime", "cudaStreamSynchronize", 141, 20),
        event("cuda_runtime", "cudaDeviceSynchronize", 182, 20), event("user_annotation", WORK, 80, 100),
        event("cpu_op", "aten::mm", 80, 15), event("gpu_user_annotation", "Optimizer.step", 0, 1000),
        {"ph": "i", "cat": "kernel", "name": "no duration", "ts": 1},
    ]  # fmt: skip
    (tmp_path / "trace.json").write_text(json.dumps({"traceEvents": events}))
    found = read_trace(tmp_path / "trace.json")
    assert (found["kernels"], found["copies"], found["waits"], found["operators"]) == (2, 1, 1, 1)
    assert found["span"] == pytest.approx(100e-6) and found["busy"] == pytest.approx(70e-6)
    assert found["time"] == {"gemm": pytest.approx(50e-6), "HtoD": pytest.approx(30e-6)}


def test_a_real_trace_is_read(tmp_path):
    found = traced(lambda: torch.ones(2) + 1, "cpu", tmp_path / "trace.json")
    assert found["kernels"] == 0 and found["operators"] >= 2
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert [e["cat"] for e in events if e.get("name") == WORK] == ["user_annotation"]


def test_marks_add_up_to_the_step():
    mark = Marks("cpu")
    for name in ("forward", "backward", "forward"):
        mark(name)
    found = mark.read()
    assert found["step"] == pytest.approx(found["forward"] + found["backward"])
    assert found["host"] >= found["step"]


def test_a_measurement_is_repeated_as_time_allows():
    counter = iter(range(100))
    assert repeated(lambda: next(counter), 5, seconds=1e9) == [0, 1, 2, 3, 4]
    assert len(repeated(lambda: next(counter), 50, seconds=0)) == 3
    assert medians([{"a": 1.0}, {"a": 5.0}, {"a": 2.0}]) == {"a": 2.0}
