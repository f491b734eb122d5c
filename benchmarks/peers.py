"""The tools that are compared, and how each is run: as a user would, one process a model."""

from __future__ import annotations

import dataclasses
import fcntl
import pathlib
import subprocess
import sys
from collections.abc import Callable

__all__ = ["TOOLS", "Tool", "peer_python"]

_HERE = pathlib.Path(__file__).parent
_ENVIRONMENT = _HERE / ".peers"

#: onnxscript has no command; this is what its documentation shows.
_ONNXSCRIPT = """
import sys, onnx_ir, onnxscript.optimizer
model = onnx_ir.load(sys.argv[1])
onnxscript.optimizer.optimize(model)
external = sys.argv[3] or None
onnx_ir.save(model, sys.argv[2], external_data=external)
"""


@dataclasses.dataclass(frozen=True)
class Tool:
    """One simplifier.

    Attributes:
        name: Its name, which is its package's too.
        verifies: Whether it compares outputs in the runtime by default.
        command: The command line, given input, output, and whether weights are external.
    """

    name: str
    verifies: bool
    command: Callable[[pathlib.Path, pathlib.Path, bool], list[str]]


def peer_python(
    environment: pathlib.Path = _ENVIRONMENT,
    requirements: pathlib.Path = _HERE / "peer-requirements.txt",
) -> str:
    """Interpreter of an environment of peers, which is made when first needed.

    What was not finished is made again; of several who need it one makes it.
    """
    python, finished = environment / "bin" / "python", environment / ".finished"
    environment.mkdir(exist_ok=True)
    with (environment / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not finished.exists():
            print(f"{environment.name}: installing {requirements.name}", flush=True)
            subprocess.run([sys.executable, "-m", "venv", environment], check=True)
            install = [str(python), "-m", "pip", "install", "--quiet", "-r", str(requirements)]
            subprocess.run(install, check=True)
            finished.touch()
    return str(python)


def _onnxopt(source: pathlib.Path, target: pathlib.Path, external: bool) -> list[str]:
    return [sys.executable, "-m", "onnxopt", "optimize", str(source), str(target), "-q"]


def _onnxsim(source: pathlib.Path, target: pathlib.Path, external: bool) -> list[str]:
    extra = ["--save-as-external-data"] if external else []
    return [peer_python(), "-m", "onnxsim", str(source), str(target), *extra]


def _onnxslim(source: pathlib.Path, target: pathlib.Path, external: bool) -> list[str]:
    extra = ["--save-as-external-data"] if external else []
    script = str(pathlib.Path(peer_python()).with_name("onnxslim"))
    return [script, str(source), str(target), *extra]


def _onnxscript(source: pathlib.Path, target: pathlib.Path, external: bool) -> list[str]:
    data = f"{target.name}.data" if external else ""
    return [peer_python(), "-c", _ONNXSCRIPT, str(source), str(target), data]


TOOLS = {
    tool.name: tool
    for tool in (
        Tool("onnxopt", True, _onnxopt),
        Tool("onnxsim", False, _onnxsim),
        Tool("onnxslim", False, _onnxslim),
        Tool("onnxscript", False, _onnxscript),
    )
}
