"""Recipes: how to distill, in a TOML file.

    labels = "label"
    temperature = 4

    [training]
    epochs = 20
    batch-size = 128

    [pruning]
    kind = "gradual"
    sparsity = 0.8

    [hints]
    "/blocks/2/Relu_output_0" = "/blocks/2/Relu_output_0"

The keys are the fields of `DistillSettings`, `TrainingSettings` and `PruningSchedule`; hyphens do
for underscores.
"""

from __future__ import annotations

import pathlib

from onnxopt.toml_tables import read_toml, settings_from
from onnxopt.training.distillation import DistillSettings

__all__ = ["read_distill_recipe"]


def read_distill_recipe(path: pathlib.Path) -> DistillSettings:
    """Read and check a recipe.

    Raises:
        OptionError: When it cannot be read, a key is unknown, or a value is of the wrong kind.
    """
    return settings_from(DistillSettings, read_toml(path), f"recipe {path}")
