"""Run models in a child process that may die without harm.

ONNX Runtime can crash the whole process on a bad model, or never return. Every session of this
project lives in such a child; when it dies, the next request starts a new one.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import pathlib
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection, Listener
from typing import IO, Any

from onnxopt.errors import RuntimeCrashError, RuntimeRefusalError
from onnxopt.parallel.quiet import quiet
from onnxopt.runtime.messages import Kernel, KernelTime, SessionInfo, Watcher

__all__ = ["Worker", "shared_worker"]

#: A child that has not called back after this time will not.
_START_SECONDS = 60.0
#: How often to look whether it is still alive meanwhile.
_LOOK_SECONDS = 0.1
#: A request that takes longer is a hang. Loading a few GiB takes well under a minute.
_REQUEST_SECONDS = 900.0


class Worker:
    """A child process that loads and runs models.

    Sessions are lost when the child dies; `generation` tells.

    Args:
        request_seconds: Give up on a request after this time.
    """

    def __init__(self, request_seconds: float = _REQUEST_SECONDS) -> None:
        self.generation = 0
        self._request_seconds = request_seconds
        self._process: subprocess.Popen[str] | None = None
        self._connection: Connection | None = None
        self._errors: IO[bytes] | None = None
        self._starting = threading.Lock()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start the child if none runs. Several threads may ask for that."""
        with self._starting:
            self._start()

    def _start(self) -> None:
        if self._process is not None and self._process.poll() is None:
            return
        self.stop()
        key = secrets.token_bytes(16)
        with Listener(authkey=key) as listener:
            self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the child
            paths = [str(pathlib.Path(__file__).parents[2]), *filter(None, sys.path)]
            self._process = subprocess.Popen(
                [sys.executable, "-m", "onnxopt.runtime.child", str(listener.address)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=self._errors,
                text=True,
                env={
                    **os.environ,
                    # Observers multiply matrices here; the runtime has threads of its own.
                    "OPENBLAS_NUM_THREADS": "1",
                    "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),
                },
            )
            assert self._process.stdin is not None
            self._process.stdin.write(key.hex() + "\n")
            self._process.stdin.flush()
            self._connection = self._accept(listener)
        self.generation += 1

    def stop(self) -> None:
        """End the child, whatever it is doing."""
        if self._connection is not None:
            with contextlib.suppress(OSError):
                self._connection.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            if self._process.stdin is not None:
                with contextlib.suppress(OSError):
                    self._process.stdin.close()
        if self._errors is not None:
            self._errors.close()
        self._connection = self._process = self._errors = None

    def interrupt(self) -> None:
        """Kill the child from another thread; whoever waits for it gets `RuntimeCrashError`."""
        process = self._process
        if process is not None:
            process.kill()
            process.wait()  # or the next request would take it for alive

    def open(
        self,
        model: str | os.PathLike[str] | bytes,
        *,
        threads: int = 1,
        level: str = "all",
        profile: bool = False,
        config: Mapping[str, str] | None = None,
    ) -> SessionInfo:
        """Load a model from a path or its bytes.

        Args:
            model: Path (external data is found beside it) or the serialized model.
            threads: Threads for one operator.
            level: ``disabled``, ``basic``, ``extended`` or ``all`` (the runtime's default).
            profile: Record what runs, until `kernels` is called.
            config: Session configuration entries.

        Raises:
            RuntimeRefusalError: When the runtime does not take the model.
            RuntimeCrashError: When the child dies or hangs.
        """
        # The child may have been started in another folder.
        source = model if isinstance(model, bytes) else os.path.abspath(model)
        answer = self._ask(
            "open", model=source, threads=threads, level=level, profile=profile, config=config
        )
        assert isinstance(answer, SessionInfo)
        return answer

    def run(self, session: int, feed: Mapping[str, Any]) -> list[Any]:
        """Run a session once and give all its outputs."""
        outputs: list[Any] = self._ask("run", session=session, feed=dict(feed))
        return outputs

    def watch(self, session: int, watchers: Mapping[str, Watcher]) -> None:
        """Have copies of watchers look at inputs and outputs of a session when `observe` runs it.

        Args:
            session: The session.
            watchers: Picklable watchers, by the name of an input or output.
        """
        self._ask("watch", session=session, watchers=dict(watchers))

    def let_through(
        self, session: int, model: pathlib.Path | bytes, threads: int, outputs: Sequence[str]
    ) -> None:
        """Have `observe` show outputs as they lie in memory, where that saves reordering them.

        Args:
            session: A session of the model, for nothing but `observe` from then on.
            model: Its path, or its bytes.
            threads: Threads for one operator.
            outputs: Names of the outputs whose watchers take blocks of channels.
        """
        source = model if isinstance(model, bytes) else os.path.abspath(model)
        self._ask(
            "let_through", session=session, model=source, threads=threads, outputs=list(outputs)
        )

    def observe(
        self, session: int, feed: Mapping[str, Any], lot: int | None = None
    ) -> dict[str, str]:
        """Run a session once for its watchers; gives what they object to, by name.

        Args:
            session: The session.
            feed: Its inputs.
            lot: Handed on to the watchers.
        """
        objections: dict[str, str] = self._ask("observe", session=session, feed=dict(feed), lot=lot)
        return objections

    def settle(self, session: int) -> dict[str, str]:
        """Tell watchers that a piece of the samples has ended; gives what they object to."""
        objections: dict[str, str] = self._ask("settle", session=session)
        return objections

    def watched(self, session: int) -> dict[str, Any]:
        """The watchers of a session, by name, as they are now; the session has none from then on.

        They come one by one: together they may be large.
        """
        found: dict[str, Any] = {}
        while (each := self._ask("hand_over", session=session)) is not None:
            found[each[0]] = each[1]
        return dict(reversed(found.items()))

    def watched_packed(self, session: int) -> bytes:
        """The pickle of what `watched` gives, for whoever only hands it on."""
        packed: bytes = self._ask("watched_packed", session=session)
        return packed

    def watched_into(self, session: int, path: pathlib.Path) -> None:
        """Write what `watched_packed` gives to a file: large things travel so with least copying.

        Args:
            session: The session.
            path: Of the file, absolute.
        """
        self._ask("watched_into", session=session, path=str(path))

    def evaluate(
        self,
        model: bytes,
        feed: Mapping[str, Any],
        seconds: float = 60.0,
        *,
        level: str = "disabled",
    ) -> list[Any]:
        """Compute the outputs of a small model once.

        Args:
            model: The model.
            feed: Its inputs.
            seconds: What takes longer is a hang.
            level: Of the runtime's optimizations, none unless this says so.
        """
        outputs: list[Any] = self._ask(
            "evaluate", seconds, model=model, feed=dict(feed), level=level
        )
        return outputs

    def optimized_nodes(self, model: str | os.PathLike[str]) -> list[tuple[str, tuple[str, ...]]]:
        """Operator and output names of the nodes that the runtime makes of a model it loads.

        The level is the runtime's default; nodes of bodies are among them.

        Raises:
            RuntimeRefusalError: When the runtime does not take the model.
            RuntimeCrashError: When the child dies or hangs.
        """
        nodes: list[tuple[str, tuple[str, ...]]] = self._ask(
            "optimized_nodes", model=os.fspath(model)
        )
        return nodes

    def kernels(self, session: int) -> list[Kernel]:
        """The nodes that ran in a session opened with ``profile``; ends the profiling."""
        kernels: list[Kernel] = self._ask("kernels", session=session)
        return kernels

    def profile(
        self,
        model: str | os.PathLike[str],
        feed: Mapping[str, Any],
        *,
        threads: int = 1,
        seconds: float = 0.5,
    ) -> list[KernelTime]:
        """Time for one run of each node that the runtime makes of a model, in the order they run.

        Args:
            model: Its path.
            feed: Inputs of each run.
            threads: Threads for one operator.
            seconds: Time to spend on runs.

        Raises:
            RuntimeRefusalError: When the runtime does not take the model or the feed.
            RuntimeCrashError: When the child dies or hangs.
        """
        with quiet():
            times: list[KernelTime] = self._ask(
                "profile",
                model=os.path.abspath(model),
                feed=dict(feed),
                threads=threads,
                seconds=seconds,
            )
        return times

    def time(
        self, sessions: Sequence[int], feed: Mapping[str, Any], seconds: float, least: int = 5
    ) -> list[list[float]]:
        """Seconds for one run, by session and round, measured in turn; see the child's method."""
        with quiet():
            samples: list[list[float]] = self._ask(
                "time", sessions=list(sessions), feed=dict(feed), seconds=seconds, least=least
            )
        return samples

    def close(self, session: int) -> None:
        """Forget a session."""
        self._ask("close", session=session)

    def peak_memory(self) -> int:
        """Largest resident size of the child so far, in bytes."""
        return int(self._ask("peak_memory"))

    def _ask(self, method: str, limit: float | None = None, **arguments: Any) -> Any:
        self.start()
        assert self._connection is not None
        try:
            self._connection.send((method, arguments))
            if not self._connection.poll(limit or self._request_seconds):
                self.stop()
                raise RuntimeCrashError(
                    f"ONNX Runtime did not finish within {limit or self._request_seconds:.0f} s"
                )
            status, value = self._connection.recv()
        except (EOFError, OSError) as error:
            reason = self._last_words()
            self.stop()
            raise RuntimeCrashError(f"ONNX Runtime crashed{reason}") from error
        except BaseException:
            self.stop()  # or its late answer would be taken for that of the next request
            raise
        if status == "refused":
            raise RuntimeRefusalError(_plain(value))
        return value

    def _accept(self, listener: Listener) -> Connection:
        """Wait for the child to call, but not for ever, and not for a dead one."""
        assert self._process is not None
        socket = listener._listener._socket  # type: ignore[attr-defined]  # no public time-out
        socket.settimeout(_LOOK_SECONDS)
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                connection = listener.accept()
            except (EOFError, OSError) as error:
                if self._process.poll() is None and time.monotonic() < deadline:
                    continue
                self._process.kill()
                reason = self._last_words()
                self.stop()
                raise RuntimeCrashError(
                    f"the process for ONNX Runtime did not start{reason}"
                ) from error
            assert isinstance(connection, Connection)
            return connection

    def _last_words(self) -> str:
        """How the child died, and the last line it wrote."""
        assert self._process is not None
        assert self._errors is not None
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return ""
        words = f" (exit code {code})"
        if code < 0:
            with contextlib.suppress(ValueError):
                words = f" ({signal.Signals(-code).name})"
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return f"{words}: {lines[-1].strip()[:200]}" if lines else words


def _plain(message: str) -> str:
    """The runtime's message without its prefix and its stack of source lines."""
    text = message.splitlines()[0] if message else "no message"
    prefix = "[ONNXRuntimeError] : "
    if text.startswith(prefix):
        parts = text.removeprefix(prefix).split(" : ", 2)
        text = parts[-1].strip() or parts[1] if len(parts) > 1 else parts[0]
    return text.strip()


@functools.cache
def shared_worker(purpose: str = "evaluation") -> Worker:
    """A worker of this process, started when first needed and stopped at exit.

    Workers for different purposes can be used at the same time from different threads.
    """
    worker = Worker()
    atexit.register(worker.stop)
    return worker
