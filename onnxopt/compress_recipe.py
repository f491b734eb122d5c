"""Recipes of the long road: which pipelines, how to train, and what it may cost, in a TOML file.

    prune = "exact,prune-channels{amount=$amount,of=$of}"
    quantize = "exact,quantize"
    encode = ""

    [target]
    of = "latency"
    share = 0.25

    [distill]
    labels = "label"

    [distill.training]
    epochs = 10

    [budget]
    min-agreement = 0.97

The keys are the fields of `CompressSettings` and those below it; hyphens do for underscores.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from onnxopt.compress import CompressSettings
from onnxopt.recipe import read_budget
from onnxopt.toml_tables import read_toml, settings_from

__all__ = ["CompressRecipe", "read_compress_recipe"]


@dataclasses.dataclass(frozen=True)
class CompressRecipe:
    """What a recipe says.

    Attributes:
        settings: The settings, with the usual budget.
        budget: Fields of the budget, as far as they are given, for `onnxopt.recipe.budget_from`.
    """

    settings: CompressSettings
    budget: Mapping[str, Any]


def read_compress_recipe(path: pathlib.Path) -> CompressRecipe:
    """Read and check a recipe.

    Raises:
        OptionError: When it cannot be read, a key is unknown, or a value is of the wrong kind.
    """
    document = read_toml(path)
    budget = read_budget(document.pop("budget", {}), path)
    settings = settings_from(CompressSettings, document, f"recipe {path}")
    return CompressRecipe(settings, budget)
