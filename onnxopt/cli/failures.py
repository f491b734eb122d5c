"""From an exception to one sentence on stderr and an exit code.

A traceback is for whoever mends the program: it is shown with ``--debug`` or ``ONNXOPT_DEBUG=1``.
"""

from __future__ import annotations

import functools
import os
import sys
import traceback
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import typer

from onnxopt.errors import OnnxoptError

__all__ = ["DEBUG_VARIABLE", "INTERRUPTED", "reports_failures"]

DEBUG_VARIABLE = "ONNXOPT_DEBUG"

#: Ended by Ctrl-C, as a shell counts it: 128 + SIGINT.
INTERRUPTED = 130

P = ParamSpec("P")
R = TypeVar("R")


def reports_failures(exit_code: int = 1) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a command so that what it raises becomes a sentence and an exit code.

    Args:
        exit_code: Exit code of a failure; another one than 1 where 1 is an answer.
    """

    def decorate(command: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(command)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                result = command(*args, **kwargs)
                sys.stdout.flush()  # a reader that has gone is noticed here, not at exit
            except (typer.Exit, typer.Abort, typer.BadParameter):
                raise
            except KeyboardInterrupt as interruption:
                _say(_one_line(str(interruption)) or "interrupted; nothing was written")
                raise typer.Exit(INTERRUPTED) from None
            except BrokenPipeError:
                _drop_stdout()
                raise typer.Exit(exit_code) from None
            except OnnxoptError as error:
                _say(_one_line(str(error)))
                _trace()
                raise typer.Exit(exit_code) from error
            except Exception as error:
                what = f"{type(error).__name__}: {_one_line(str(error))}".rstrip(": ")
                _say(
                    f"unexpected {what}; this is a defect of onnxopt: please report it with the "
                    "command and, if you can, the model (--debug before the command shows where)"
                )
                _trace()
                raise typer.Exit(exit_code) from error
            return result

        return guarded

    return decorate


def _say(message: str) -> None:
    print(f"onnxopt: error: {message}", file=sys.stderr)


def _trace() -> None:
    if os.environ.get(DEBUG_VARIABLE, "") not in ("", "0"):
        traceback.print_exc()


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _drop_stdout() -> None:
    """Let what is still buffered go nowhere, or the interpreter complains when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
