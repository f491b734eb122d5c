"""The child process: answers, refusals, crashes, hangs, and types numpy does not know."""

from __future__ import annotations

import os
import pathlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest

from onnxopt.errors import RuntimeCrashError, RuntimeRefusalError
from onnxopt.runtime.trial import race, try_model
from onnxopt.runtime.worker import Worker, shared_worker
from tests.differential import parse


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker() as started:
        yield started


def _bytes(text: str) -> bytes:
    return bytes(parse(text).SerializeToString())


_RELU = _bytes("g (float[N] x) => (float[N] y) { y = Relu(x) }")
_LONG_LOOP = _bytes(
    """
    g (int64 n) => (float[64, 64] y) {
        yes = Constant<value = bool {1}>()
        shape = Constant<value = int64[2] {64, 64}>()
        start = ConstantOfShape(shape)
        y = Loop (n, yes, start) <
            body = b (int64 i, bool go, float[64, 64] s) => (bool on, float[64, 64] e) {
                on = Identity(go)
                p = MatMul(s, s)
                e = Cos(p)
            }
        >
    }
    """
)


class TestAnswers:
    def test_session(self, worker: Worker) -> None:
        info = worker.open(_RELU)
        assert [(port.name, port.type, port.shape) for port in info.inputs] == [
            ("x", "tensor(float)", ("N",))
        ]
        assert [port.name for port in info.outputs] == ["y"]
        [y] = worker.run(info.session, {"x": np.array([-1, 2], np.float32)})
        np.testing.assert_array_equal(y, [0, 2])
        worker.close(info.session)
        with pytest.raises(RuntimeRefusalError):
            worker.run(info.session, {"x": np.zeros(1, np.float32)})

    def test_path_with_external_data(self, worker: Worker, tmp_path: pathlib.Path) -> None:
        weights = np.arange(300, dtype=np.float32)
        model = parse("g (float[300] x) => (float[300] y) { y = Add(x, w) }", {"w": weights})
        onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="w.bin")
        info = worker.open(tmp_path / "m.onnx")
        [y] = worker.run(info.session, {"x": weights})
        np.testing.assert_array_equal(y, 2 * weights)

    def test_overridable_initializers(self, worker: Worker) -> None:
        model = parse("g (float[2] x, float[2] w) => (float[2] y) { y = Add(x, w) }")
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(2, np.float32), "w"))
        info = worker.open(model.SerializeToString())
        assert [port.name for port in info.inputs] == ["x"]
        assert [port.name for port in info.overridable] == ["w"]

    def test_evaluate(self, worker: Worker) -> None:
        [y] = worker.evaluate(_RELU, {"x": np.array([3], np.float32)})
        np.testing.assert_array_equal(y, [3])

    def test_kernels_of_the_optimized_graph(self, worker: Worker) -> None:
        model = _bytes("g (float[2] x) => (float[2] y) { a = Identity(x) b = Exp(a) y = Neg(b) }")
        info = worker.open(model, profile=True)
        worker.run(info.session, {"x": np.zeros(2, np.float32)})
        worker.run(info.session, {"x": np.zeros(2, np.float32)})
        kernels = worker.kernels(info.session)
        assert sorted(kernel.op_type for kernel in kernels) == ["Exp", "Neg"]
        assert all(kernel.seconds >= 0 for kernel in kernels)

    def test_kernels_without_the_runtimes_optimizations(self, worker: Worker) -> None:
        model = _bytes("g (float[2] x) => (float[2] y) { a = Identity(x) y = Exp(a) }")
        info = worker.open(model, profile=True, level="disabled")
        worker.run(info.session, {"x": np.zeros(2, np.float32)})
        assert {kernel.op_type for kernel in worker.kernels(info.session)} == {"Identity", "Exp"}

    def test_time(self, worker: Worker) -> None:
        sessions = [worker.open(_RELU).session for _ in range(2)]
        samples = worker.time(sessions, {"x": np.zeros(4, np.float32)}, 0.0, 3)
        assert [len(each) for each in samples] == [3, 3]
        assert min(map(min, samples)) > 0

    def test_memory(self, worker: Worker) -> None:
        worker.start()
        assert worker.peak_memory() > 2**20

    @pytest.mark.parametrize(
        ("kind", "dtype"),
        [
            ("bfloat16", ml_dtypes.bfloat16),
            ("float8e4m3fn", ml_dtypes.float8_e4m3fn),
            ("float8e5m2", ml_dtypes.float8_e5m2),
            ("float16", np.float16),
            ("uint8", np.uint8),
            ("bool", np.bool_),
            ("double", np.float64),
        ],
    )
    def test_element_types(self, kind: str, dtype: type, worker: Worker) -> None:
        text = f"g ({kind}[2, 3] x) => ({kind}[3, 2] y) {{ y = Reshape(x, s) }}"
        model = parse('<ir_version: 10, opset_import: ["" : 21]>' + text, {"s": np.array([3, 2])})
        array: np.ndarray[Any, Any] = np.arange(6).reshape(2, 3).astype(dtype)
        info = worker.open(model.SerializeToString())
        [y] = worker.run(info.session, {"x": array})
        assert y.dtype == array.dtype
        np.testing.assert_array_equal(y.astype(np.float32), array.reshape(3, 2).astype(np.float32))

    def test_empty_bfloat16(self, worker: Worker) -> None:
        text = "g (bfloat16[N] x) => (bfloat16[M] y) { y = Identity(x) }"
        info = worker.open(_bytes('<ir_version: 8, opset_import: ["" : 16]>' + text))
        [y] = worker.run(info.session, {"x": np.zeros(0, ml_dtypes.bfloat16)})
        assert (y.shape, y.dtype) == ((0,), np.dtype(ml_dtypes.bfloat16))

    def test_strings(self, worker: Worker) -> None:
        info = worker.open(_bytes("g (string[2] x) => (string[2] y) { y = Identity(x) }"))
        [y] = worker.run(info.session, {"x": np.array(["a", "\u03b2"], dtype=object)})
        assert list(y) == ["a", "\u03b2"]

    def test_sequences(self, worker: Worker) -> None:
        text = (
            "g (seq(float[N]) x) => (seq(float[N]) y, int64 n)"
            "{ y = Identity(x) n = SequenceLength(x) }"
        )
        info = worker.open(_bytes(text))
        arrays = [np.ones(2, np.float32), np.zeros(2, np.float32)]
        y, n = worker.run(info.session, {"x": arrays})
        assert int(n) == 2
        np.testing.assert_array_equal(y[0], arrays[0])

    @pytest.mark.parametrize("given", [True, False])
    def test_optionals(self, given: bool, worker: Worker) -> None:
        text = "g (optional(float[2]) x) => (bool y) { y = OptionalHasElement(x) }"
        info = worker.open(_bytes(text))
        [y] = worker.run(info.session, {"x": np.zeros(2, np.float32) if given else None})
        assert bool(y) is given


class TestRefusals:
    @pytest.mark.parametrize(
        "text",
        [
            "g (float[2] x) => (float[2] y) { y = NoSuchOperator(x) }",
            "g (float[2] x) => (float[3] y) { y = MatMul(x, x, x) }",
        ],
    )
    def test_model(self, text: str, worker: Worker) -> None:
        with pytest.raises(RuntimeRefusalError) as caught:
            worker.open(_bytes(text))
        assert "ONNXRuntimeError" not in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_bytes_and_paths(self, worker: Worker, tmp_path: pathlib.Path) -> None:
        for model in (b"no model", tmp_path / "none.onnx"):
            with pytest.raises(RuntimeRefusalError):
                worker.open(model)

    def test_feed(self, worker: Worker) -> None:
        info = worker.open(_RELU)
        for feed in ({}, {"z": np.zeros(1)}, {"x": np.zeros(2)}, {"x": np.zeros((2, 2), "f")}):
            with pytest.raises(RuntimeRefusalError):
                worker.run(info.session, feed)

    def test_the_child_lives_on(self, worker: Worker) -> None:
        generation = worker.generation
        with pytest.raises(RuntimeRefusalError):
            worker.open(b"no model")
        assert worker.generation == generation
        assert worker.evaluate(_RELU, {"x": np.zeros(1, np.float32)})


class TestDeath:
    def test_a_death_between_requests_goes_unnoticed(self) -> None:
        with Worker() as worker:
            worker.start()
            assert worker._process is not None
            os.kill(worker._process.pid, signal.SIGSEGV)
            worker._process.wait()
            assert worker.evaluate(_RELU, {"x": np.zeros(1, np.float32)})
            assert worker.generation == 2

    def test_a_crash_while_it_runs(self) -> None:
        with Worker() as worker:
            info = worker.open(_LONG_LOOP)
            assert worker._process is not None
            killer = threading.Timer(0.5, worker._process.send_signal, [signal.SIGABRT])
            killer.start()
            with pytest.raises(RuntimeCrashError, match=r"crashed \(SIGABRT\)"):
                worker.run(info.session, {"n": np.array(10**9)})
            killer.join()

    def test_a_hang_has_an_end(self) -> None:
        with Worker(request_seconds=1.0) as worker:
            info = worker.open(_LONG_LOOP)
            with pytest.raises(RuntimeCrashError, match="did not finish within 1 s"):
                worker.run(info.session, {"n": np.array(10**9)})
            assert worker.evaluate(_RELU, {"x": np.zeros(1, np.float32)})

    def test_evaluate_has_a_limit_of_its_own(self) -> None:
        with Worker() as worker:
            worker.start()
            with pytest.raises(RuntimeCrashError, match="did not finish within"):
                worker.evaluate(_LONG_LOOP, {"n": np.array(10**9)}, seconds=0.5)

    def test_interrupt_from_another_thread(self) -> None:
        with Worker() as worker:
            info = worker.open(_LONG_LOOP)
            killer = threading.Timer(0.5, worker.interrupt)
            killer.start()
            with pytest.raises(RuntimeCrashError):
                worker.run(info.session, {"n": np.array(10**9)})
            killer.join()

    def test_stop_leaves_no_process(self) -> None:
        worker = Worker()
        worker.start()
        process = worker._process
        assert process is not None
        worker.stop()
        assert process.poll() is not None
        worker.stop()


def test_shared_workers_by_purpose() -> None:
    assert shared_worker("a test") is shared_worker("a test")
    assert shared_worker("a test") is not shared_worker("another test")


def test_nothing_is_printed(worker: Worker, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeRefusalError):
        worker.open(_bytes("g (float[2] x) => (float[2] y) { y = NoSuchOperator(x) }"))
    worker.evaluate(_RELU, {"x": np.zeros(1, np.float32)})
    assert capfd.readouterr() == ("", "")


class TestTrial:
    def _paths(self, folder: pathlib.Path) -> list[pathlib.Path]:
        paths = [folder / "one.onnx", folder / "two.onnx"]
        for path in paths:
            path.write_bytes(_RELU)
        return paths

    def test_try(self, worker: Worker, tmp_path: pathlib.Path) -> None:
        feeds = [{"x": np.array([-1, 1], np.float32)}, {"x": np.array([5], np.float32)}]
        trial = try_model(worker, self._paths(tmp_path)[0], feeds, seconds=0.01)
        assert [outputs[0].tolist() for outputs in trial.outputs] == [[0, 1], [5]]
        assert [kernel.op_type for kernel in trial.kernels] == ["Relu"]
        assert len(trial.seconds) >= 3
        assert trial.generation is None
        with pytest.raises(RuntimeRefusalError):
            worker.run(trial.info.session, feeds[0])

    def test_sessions_left_open_are_raced(self, worker: Worker, tmp_path: pathlib.Path) -> None:
        one, two = self._paths(tmp_path)
        feed = {"x": np.zeros(3, np.float32)}
        trial = try_model(worker, one, [feed], keep_open=True)
        assert trial.generation == worker.generation
        samples = race(worker, [trial, two], feed, seconds=0.0)
        assert len(samples) == 2
        assert len(samples[0]) == len(samples[1]) > 0
        trial.close(worker)
        with pytest.raises(RuntimeRefusalError):
            worker.run(trial.info.session, feed)

    def test_sessions_of_a_dead_child_are_opened_again(self, tmp_path: pathlib.Path) -> None:
        one, two = self._paths(tmp_path)
        feed = {"x": np.zeros(3, np.float32)}
        with Worker() as worker:
            trial = try_model(worker, one, [feed], keep_open=True)
            worker.stop()
            assert len(race(worker, [trial, two], feed, seconds=0.0)) == 2
            trial.close(worker)

    def test_a_trial_that_fails_leaves_no_session(
        self, worker: Worker, tmp_path: pathlib.Path
    ) -> None:
        path = self._paths(tmp_path)[0]
        with pytest.raises(RuntimeRefusalError):
            try_model(worker, path, [{"x": np.zeros((2, 2), np.float32)}], keep_open=True)
