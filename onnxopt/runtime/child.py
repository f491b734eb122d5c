"""The process in which models run; started by `onnxopt.runtime.worker`, never imported by it.

It answers one request at a time: a method name of `Server` and keyword arguments. Each answer is
``("ok", value)``, or ``("refused", message)`` when ONNX Runtime raises.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import json
import os
import pathlib
import pickle
import resource
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.connection import Client
from typing import Any

import ml_dtypes
import numpy as np
import onnxruntime as ort

from onnxopt.runtime.blocked import BlockedSession, blocked_session, keep_optimized
from onnxopt.runtime.messages import Kernel, KernelTime, Port, SessionInfo, Watcher
from onnxopt.runtime.profile_events import kernel_times

#: Element types that ONNX Runtime's Python interface hands over as raw bits.
_RAW_TYPES: Mapping[str, tuple[int, type]] = {
    "tensor(bfloat16)": (16, ml_dtypes.bfloat16),
    "tensor(float8e4m3fn)": (17, ml_dtypes.float8_e4m3fn),
    "tensor(float8e4m3fnuz)": (18, ml_dtypes.float8_e4m3fnuz),
    "tensor(float8e5m2)": (19, ml_dtypes.float8_e5m2),
    "tensor(float8e5m2fnuz)": (20, ml_dtypes.float8_e5m2fnuz),
}
_LEVELS = {
    "disabled": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
#: One timed sample lasts at least this long, so that the clock's own cost does not count.
_SHORTEST_SAMPLE_SECONDS = 2e-3
#: So many runs are profiled. What is recorded of a run grows with the nodes.
_LEAST_PROFILED, _MOST_PROFILED = 3, 50


class Server:
    """The requests a client can make."""

    def __init__(self) -> None:
        self._sessions: dict[int, ort.InferenceSession] = {}
        self._watchers: dict[int, dict[str, Watcher]] = {}
        self._blocked: dict[int, BlockedSession] = {}
        self._profile_folder = tempfile.TemporaryDirectory(prefix="onnxopt-profile-")
        self._next = 0

    def open(
        self,
        model: str | bytes,
        threads: int = 1,
        level: str = "all",
        profile: bool = False,
        config: Mapping[str, str] | None = None,
    ) -> SessionInfo:
        """Load a model from a path or its bytes."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        options.graph_optimization_level = _LEVELS[level]
        for key, value in (config or {}).items():
            options.add_session_config_entry(key, value)
        if profile:
            options.enable_profiling = True
            options.profile_file_prefix = os.path.join(self._profile_folder.name, "profile")
        start, worked = time.perf_counter(), time.process_time()
        session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        seconds, worked = time.perf_counter() - start, time.process_time() - worked
        self._next += 1
        self._sessions[self._next] = session
        overridable = session.get_overridable_initializers()
        return SessionInfo(
            self._next,
            seconds,
            tuple(_port(each) for each in session.get_inputs()),
            tuple(_port(each) for each in session.get_outputs()),
            tuple(_port(each) for each in overridable),
            worked,
        )

    def close(self, session: int) -> None:
        """Forget a session and those who watch it."""
        self._sessions.pop(session, None)
        self._watchers.pop(session, None)
        self._blocked.pop(session, None)

    def run(self, session: int, feed: Mapping[str, Any]) -> list[Any]:
        """Run once and give all outputs."""
        return _run(self._sessions[session], feed)

    def watch(self, session: int, watchers: Mapping[str, Watcher]) -> None:
        """Have inputs and outputs of a session looked at, by name, whenever `observe` runs it."""
        self._watchers[session] = dict(watchers)

    def let_through(
        self, session: int, model: str | bytes, threads: int, outputs: list[str]
    ) -> None:
        """Have `observe` show some outputs as they lie in memory, where that saves reordering them.

        Args:
            session: A session of the model, for nothing but `observe` from then on.
            model: Its path, or its bytes.
            threads: Threads for one operator.
            outputs: Names of outputs that may be shown so.
        """
        found = blocked_session(model, threads, outputs)
        if found is not None:
            self._blocked[session], self._sessions[session] = found, found.session

    def observe(self, session: int, feed: Mapping[str, Any], lot: int | None) -> dict[str, str]:
        """Run once and show what comes out to the watchers, without sending it anywhere.

        Returns:
            What watchers object to, by the name of what they watch.
        """
        watchers = self._watchers[session]
        objections = {
            name: watchers[name].see(np.asarray(feed[name]), lot)
            for name in watchers
            if name in feed
        }
        blocked = self._blocked.get(session)
        asked = {} if blocked is None else blocked.asked
        outputs = [each.name for each in self._sessions[session].get_outputs()]
        watched = [name for name in outputs if asked.get(name, name) in watchers]
        for given, value in _outputs(self._sessions[session], watched, feed):
            name = asked.get(given, given)
            block = blocked.block if blocked is not None and given in asked else 1
            objections[name] = watchers[name].see(value, lot, block)
        return {name: text for name, text in objections.items() if text}

    def settle(self, session: int) -> dict[str, str]:
        """Tell the watchers that a piece of the samples has ended; gives what they object to."""
        objections = {name: each.settle() for name, each in self._watchers[session].items()}
        return {name: text for name, text in objections.items() if text}

    def watched_packed(self, session: int) -> bytes:
        """The pickle of the watchers of a session, with what they know."""
        return pickle.dumps(self._watchers[session], pickle.HIGHEST_PROTOCOL)

    def watched_into(self, session: int, path: str) -> None:
        """Write the pickle of the watchers of a session, with what they know, to a file."""
        with open(path, "wb") as file:
            pickle.dump(self._watchers[session], file, pickle.HIGHEST_PROTOCOL)

    def hand_over(self, session: int) -> tuple[str, Watcher] | None:
        """One of the watchers of a session and its name; it is forgotten here. None for no more."""
        watchers = self._watchers[session]
        return watchers.popitem() if watchers else None

    def evaluate(self, model: bytes, feed: Mapping[str, Any], level: str) -> list[Any]:
        """Load a small model, run it once and forget it."""
        info = self.open(model, level=level)
        try:
            return _run(self._sessions[info.session], feed)
        finally:
            self.close(info.session)

    def kernels(self, session: int) -> list[Kernel]:
        """What ran since the session was opened for profiling; ends the profiling."""
        path = pathlib.Path(self._sessions[session].end_profiling())
        try:
            events = json.loads(path.read_text())
        finally:
            path.unlink(missing_ok=True)
        return _kernels(events)

    def optimized_nodes(self, model: str) -> list[tuple[str, tuple[str, ...]]]:
        """Load a model at the default level and list the nodes of the graph that would run.

        Returns:
            Operator and output names of each node, those of bodies too.
        """
        with tempfile.TemporaryDirectory(prefix="onnxopt-optimized-") as folder:
            options = ort.SessionOptions()
            options.log_severity_level = 4
            path = _keep_optimized(options, folder)
            ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
            return [(node.op_type, tuple(node.output)) for node in _nodes_of(path)]

    def profile(
        self, model: str, feed: Mapping[str, Any], threads: int, seconds: float
    ) -> list[KernelTime]:
        """Load a model at the default level and time each node of the graph that runs.

        Args:
            model: Its path.
            feed: Inputs of each run.
            threads: Threads for one operator.
            seconds: Time to spend on runs; there are at least three after one that does not count.
        """
        with tempfile.TemporaryDirectory(prefix="onnxopt-optimized-") as folder:
            options = ort.SessionOptions()
            options.intra_op_num_threads = threads
            options.inter_op_num_threads = 1
            options.log_severity_level = 4
            options.enable_profiling = True
            options.profile_file_prefix = os.path.join(folder, "profile")
            path = _keep_optimized(options, folder)
            session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
            outputs = {node.name: tuple(node.output) for node in _nodes_of(path)}
            _run(session, feed)
            end, runs = time.perf_counter() + seconds, 0
            while runs < _LEAST_PROFILED or (runs < _MOST_PROFILED and time.perf_counter() < end):
                _run(session, feed)
                runs += 1
            events = json.loads(pathlib.Path(session.end_profiling()).read_text())
        return kernel_times(events, outputs)

    def time(
        self, sessions: Sequence[int], feed: Mapping[str, Any], seconds: float, least: int
    ) -> list[list[float]]:
        """Time sessions on one feed, in turn, for at least ``least`` rounds.

        The order is reversed every other round, so that a drift of the machine's speed falls on all
        of them alike.

        Returns:
            Seconds for one run, by session and round.
        """
        chosen = [self._sessions[session] for session in sessions]
        repeats = []
        for session in chosen:
            repeats.append(
                max(1, round(_SHORTEST_SAMPLE_SECONDS / max(_sample(session, feed, 1), 1e-9)))
            )
        samples: list[list[float]] = [[] for _ in chosen]
        end = time.perf_counter() + seconds
        count = 0
        while count < least or time.perf_counter() < end:
            order = range(len(chosen)) if count % 2 == 0 else reversed(range(len(chosen)))
            for index in order:
                samples[index].append(_sample(chosen[index], feed, repeats[index]))
            count += 1
        return samples

    def peak_memory(self) -> int:
        """Largest resident size of this process so far, in bytes.

        On Linux from its own address space: what getrusage says begins with the size of the
        process that started this one.
        """
        with contextlib.suppress(OSError):
            for line in pathlib.Path("/proc/self/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _sample(session: ort.InferenceSession, feed: Mapping[str, Any], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        _run(session, feed)
    return (time.perf_counter() - start) / repeats


def _run(session: ort.InferenceSession, feed: Mapping[str, Any]) -> list[Any]:
    types = {each.type for each in (*session.get_inputs(), *session.get_outputs())}
    if not types & _RAW_TYPES.keys():
        return list(session.run(None, dict(feed)))
    wrapped = {name: _wrap(value) for name, value in feed.items()}
    return [_unwrap(value) for value in session.run_with_ort_values(None, wrapped)]


def _outputs(
    session: ort.InferenceSession, names: Sequence[str], feed: Mapping[str, Any]
) -> Iterator[tuple[str, Any]]:
    """Run once and give some outputs; tensors are only good until the next one is asked for."""
    if not names:
        session.run(None, dict(feed))  # still finds out whether the model takes the feed
        return
    if all(isinstance(each, np.ndarray) and each.dtype.kind in "fiub" for each in feed.values()):
        wrapped = {name: _wrap(value) for name, value in feed.items()}
        values = session.run_with_ort_values(list(names), wrapped)
        for name, value in zip(names, values, strict=True):
            yield name, _in_place(value) if value.is_tensor() else None
    else:
        yield from zip(names, session.run(list(names), dict(feed)), strict=True)


def _in_place(value: ort.OrtValue) -> Any:
    """A tensor where the runtime has it; what numpy() gives is a copy."""
    shape = tuple(value.shape())
    if value.data_type() != "tensor(float)" or 0 in shape:
        return _unwrap(value)
    return np.asarray(_InPlace(value.data_ptr(), shape))


class _InPlace:
    """Numbers of float32 at an address, in the words of NumPy's array interface."""

    def __init__(self, address: int, shape: tuple[int, ...]) -> None:
        self.__array_interface__ = {
            "version": 3,
            "typestr": "=f4",
            "shape": shape,
            "data": (address, True),
        }


def _wrap(value: Any) -> ort.OrtValue:
    array = np.asarray(value)
    for number, dtype in _RAW_TYPES.values():
        if array.dtype == dtype:
            bits = array.view(np.uint16 if array.itemsize == 2 else np.uint8)
            return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, number)
    return ort.OrtValue.ortvalue_from_numpy(array)


def _unwrap(value: ort.OrtValue) -> Any:
    raw = _RAW_TYPES.get(value.data_type())
    if raw is None:
        return value.numpy()
    dtype = np.dtype(raw[1])
    count = int(np.prod(value.shape(), dtype=np.int64))
    content = ctypes.string_at(value.data_ptr(), count * dtype.itemsize) if count else b""
    return np.frombuffer(content, dtype=dtype).reshape(value.shape())


def _keep_optimized(options: ort.SessionOptions, folder: str) -> str:
    """Have the graph that would run written to a folder; the path it will have."""
    path = os.path.join(folder, "model.onnx")
    keep_optimized(options, path)
    return path


def _nodes_of(path: str) -> list[Any]:
    """The nodes of a model, those of bodies too."""
    import onnx  # slow to import and seldom needed

    graphs = [onnx.load(path, load_external_data=False).graph]
    for graph in graphs:  # grows while it is walked
        for node in graph.node:
            for attribute in node.attribute:
                graphs.extend([attribute.g] if attribute.HasField("g") else attribute.graphs)
    return [node for graph in graphs for node in graph.node]


def _port(node_arg: Any) -> Port:
    shape = tuple(dim if isinstance(dim, int | str) else None for dim in node_arg.shape or ())
    return Port(node_arg.name, node_arg.type, shape)


def _kernels(events: Sequence[Mapping[str, Any]]) -> list[Kernel]:
    """One entry a node of the optimized graph that ran, with the time of all its runs."""
    spent: dict[tuple[str, str], list[float]] = collections.defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            arguments = event.get("args", {})
            op_type = arguments.get("op_name", "")
            key = (event["name"].removesuffix("_kernel_time"), op_type)
            spent[key].append(float(event["dur"]) * 1e-6)
    found = []
    for (name, op_type), times in spent.items():
        half = sorted(times)[: (len(times) + 1) // 2]
        found.append(Kernel(name, op_type, sum(times), sum(half) / len(half)))
    return found


def main() -> None:
    """Answer requests until the client hangs up. The address is the argument, the key on stdin."""
    key = bytes.fromhex(sys.stdin.readline().strip())
    server = Server()
    with Client(sys.argv[1], authkey=key) as connection:
        while True:
            try:
                method, arguments = connection.recv()
            except EOFError:
                return
            try:
                answer = ("ok", getattr(server, method)(**arguments))
            except Exception as error:  # the runtime raises many types; the client decides
                answer = ("refused", f"{str(error).strip() or type(error).__name__}")
            connection.send(answer)


if __name__ == "__main__":
    main()
