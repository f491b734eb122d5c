"""The committed example of compression is what its README says it is."""

import os
import re
from pathlib import Path

import onnx

from models.fashion_mnist.evaluate import count_correct

FOLDER = Path(__file__).parents[2] / "models" / "fashion_resnet"
TEACHER, SMALL = FOLDER / "teacher.onnx", FOLDER / "small.onnx"


def test_a_tenth_of_the_size() -> None:
    assert os.path.getsize(SMALL) <= os.path.getsize(TEACHER) / 10
    assert f"{os.path.getsize(SMALL):,} bytes" in (FOLDER / "README.md").read_text()


def test_the_same_interface() -> None:
    one, other = onnx.load(TEACHER).graph, onnx.load(SMALL).graph
    assert one.input == other.input
    assert [value.name for value in one.output] == [value.name for value in other.output]


def test_as_accurate_as_the_teacher() -> None:
    """On the 2,000 images of the smaller example; kernels differ between processors."""
    found = {path: count_correct(path)[0] / 2000 for path in (TEACHER, SMALL)}
    assert found[TEACHER] >= 0.935
    assert found[SMALL] >= found[TEACHER] - 0.01


def test_the_recipe_can_be_read() -> None:
    from onnxopt.compress_recipe import read_compress_recipe

    recipe = read_compress_recipe(FOLDER / "recipe.toml")
    assert recipe.settings.target.share == 0.25
    assert recipe.settings.distill.labels == "label"
    assert re.search(r"^amount = 0.65$", (FOLDER / "recipe.toml").read_text(), re.MULTILINE)
