"""The program ``onnxopt``: its commands and the options that all of them share."""

from __future__ import annotations

import os
import shlex
import shutil
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from onnxopt.cli.batch import batch
from onnxopt.cli.bench import bench
from onnxopt.cli.bisect import bisect
from onnxopt.cli.check import check
from onnxopt.cli.compress import compress
from onnxopt.cli.decode import decode
from onnxopt.cli.distill import distill
from onnxopt.cli.failures import DEBUG_VARIABLE
from onnxopt.cli.inspect import inspect
from onnxopt.cli.optimize import optimize
from onnxopt.cli.passes import passes
from onnxopt.cli.report import report
from onnxopt.cli.reports import command_line

__all__ = ["app", "main"]

#: Help is at most so wide.
_WIDTH = 100


class _Program(TyperGroup):
    """Keeps the command line as it was given, so that a report can say how to make it again."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any
    ) -> Any:
        """Read the arguments."""
        command_line.set(shlex.join(["onnxopt", *args]))
        return super().make_context(info_name, args, parent, **extra)


app = typer.Typer(
    name="onnxopt",
    cls=_Program,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": _WIDTH},
    epilog="Example: onnxopt optimize model.onnx smaller.onnx",
)


def _version(asked: bool) -> None:
    if asked:
        import importlib.metadata

        print(f"onnxopt {importlib.metadata.version('onnxopt')}")
        raise typer.Exit


@app.callback()
def shared(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Show the version and exit.", callback=_version, is_eager=True
        ),
    ] = False,
    debug: Annotated[
        bool,
        typer.Option(
            "--debug", help=f"Show the traceback of an error, as {DEBUG_VARIABLE}=1 does."
        ),
    ] = False,
) -> None:
    """Optimize ONNX models: same interface, same answers, never larger, never slower.

    Every result is compared with the original in ONNX Runtime before it is written.
    """
    if debug:
        os.environ[DEBUG_VARIABLE] = "1"


app.command(epilog="Example: onnxopt optimize model.onnx smaller.onnx --report report.html")(
    optimize
)
app.command(epilog="Example: onnxopt batch models/ out/ --recipe recipe.toml --workers 2")(batch)
app.command(epilog="Example: onnxopt inspect model.onnx --shape image:1,3,224,224")(inspect)
app.command(epilog="Example: onnxopt check model.onnx smaller.onnx --tolerance 1e-3,1e-5")(check)
app.command(epilog="Example: onnxopt bench model.onnx smaller.onnx --report bench.html")(bench)
app.command(epilog="Example: onnxopt report before.json after.json compared.html")(report)
app.command(epilog="Example: onnxopt passes fuse-affine")(passes)
app.command(epilog="Example: onnxopt decode compact.onnx dense.onnx")(decode)
app.command(
    epilog="Example: onnxopt compress model.onnx smaller.onnx --data train/ --target-latency 0.5"
)(compress)
app.command(
    epilog="Example: onnxopt distill --teacher model.onnx --student pruned.onnx out.onnx "
    "--data train.npz"
)(distill)
app.command(epilog="Example: onnxopt bisect model.onnx --passes exact --reproducer broken/")(bisect)


def main() -> None:
    """Run the command line; never returns."""
    # Help is as wide as tables are; typer reads this when it first formats some.
    columns = min(_WIDTH, shutil.get_terminal_size().columns)
    os.environ.setdefault("TERMINAL_WIDTH", str(columns))
    app(prog_name="onnxopt")
