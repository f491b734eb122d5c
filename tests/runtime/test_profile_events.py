from typing import Any

import pytest

from onnxopt.runtime.profile_events import kernel_times


def kernel(name: str, start: float, duration: float, op: str = "Relu") -> dict[str, Any]:
    return {
        "cat": "Node",
        "name": f"{name}_kernel_time",
        "ts": start,
        "dur": duration,
        "args": {"op_name": op, "input_type_shape": [{"float": [1]}, {"uint8": [2]}]},
    }


def run(start: float, duration: float) -> dict[str, Any]:
    return {"cat": "Session", "name": "model_run", "ts": start, "dur": duration}


def test_first_run_does_not_count_and_the_median_does() -> None:
    events = []
    for index, duration in enumerate((900.0, 10.0, 70.0, 12.0)):
        events += [kernel("a", 1000.0 * index, duration), run(1000.0 * index, 950.0)]
    (found,) = kernel_times(events, {"a": ("y",)})
    assert found.seconds == pytest.approx(12e-6)
    assert found.outputs == ("y",)
    assert found.input_types == ("float", "uint8")


def test_one_run_is_better_than_none() -> None:
    (found,) = kernel_times([kernel("a", 0.0, 5.0), run(0.0, 6.0)], {})
    assert found.seconds == pytest.approx(5e-6)
    assert found.outputs == ()


def test_runs_of_a_body_add_up_and_are_not_counted_twice() -> None:
    events = [
        run(0, 100),
        kernel("loop", 1000, 100, "Loop"),
        kernel("inside", 1010, 20),
        kernel("inside", 1040, 30),
        kernel("behind", 1100, 7),
        run(1000, 150),
    ]
    times = {each.node: each.seconds for each in kernel_times(events, {})}
    assert times == pytest.approx({"loop": 50e-6, "inside": 50e-6, "behind": 7e-6})


def test_nested_bodies() -> None:
    events = [
        run(0, 1),
        kernel("a", 10, 100),
        kernel("b", 20, 50),
        kernel("c", 30, 10),
        run(5, 200),
    ]
    times = {each.node: each.seconds for each in kernel_times(events, {})}
    assert times == pytest.approx({"a": 50e-6, "b": 40e-6, "c": 10e-6})


def test_nothing_ran() -> None:
    assert kernel_times([run(0, 1)], {}) == []
