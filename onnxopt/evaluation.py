"""The user's own measure of a model, named as ``module:function``."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable

from onnxopt.errors import EvaluationError, OptionError

__all__ = ["load_evaluation"]


def load_evaluation(text: str, folder: str = "") -> Callable[[str], float]:
    """Find a function that takes the path of a model and gives a number, better when higher.

    Args:
        text: Such as ``accuracy:evaluate``; the module may be a file in the folder.
        folder: Where modules are looked for besides; the current one by default.

    Returns:
        The function, guarded: it raises `EvaluationError` when the user's function raises or gives
        anything but a finite number.

    Raises:
        OptionError: When there is no such module or function.
    """
    module_name, colon, name = text.partition(":")
    if not colon or not module_name or not name:
        raise OptionError(f"'{text}' is not an evaluation; write module:function")
    sys.path.insert(0, folder)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # the module is the user's, and may raise anything
        raise OptionError(
            f"module '{module_name}' of --evaluate cannot be imported: {error}"
        ) from error
    finally:
        sys.path.remove(folder)
    function = getattr(module, name, None)
    if not callable(function):
        raise OptionError(f"module '{module_name}' has no function '{name}' to evaluate with")

    def evaluate(path: str) -> float:
        try:
            value = float(function(path))
        except Exception as error:
            kind = type(error).__name__
            raise EvaluationError(f"the evaluation {text} raised {kind}: {error}") from error
        if not math.isfinite(value):
            raise EvaluationError(f"the evaluation {text} gave {value}, which is no score")
        return value

    return evaluate
