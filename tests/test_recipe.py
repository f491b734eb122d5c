import dataclasses
import pathlib

import pytest

from onnxopt.errors import OptionError
from onnxopt.optimizer import Settings
from onnxopt.recipe import _READERS, read_recipe


def write(folder: pathlib.Path, text: str) -> pathlib.Path:
    path = folder / "recipe.toml"
    path.write_text(text)
    return path


def test_keys_are_the_fields_of_settings() -> None:
    assert list(_READERS) == [field.name for field in dataclasses.fields(Settings)]


def test_everything_at_once(tmp_path: pathlib.Path) -> None:
    recipe = read_recipe(
        write(
            tmp_path,
            """
            passes = ["fold-constants{max-bytes=0}", "fuse-affine"]
            skip = "infer-shapes, fuse-pad"
            verify = "each"
            guard-speed = false
            data = "samples"
            threads = 2
            seconds = 3
            external-data = "always"
            in_place = true
            dry_run = false
            reproducer = "/elsewhere"
            tolerance = { rtol = 1e-2 }

            [values]
            rate = 16000
            flags = [true, false]
            table = "table.npy"

            [shapes]
            audio = [1, -1]
            """,
        )
    )
    assert recipe.settings == {
        "passes": "fold-constants{max-bytes=0},fuse-affine",
        "skip": ("infer-shapes", "fuse-pad"),
        "verify": "each",
        "guard_speed": False,
        "data": tmp_path / "samples",
        "threads": 2,
        "seconds": 3.0,
        "external_data": "always",
        "in_place": True,
        "dry_run": False,
        "reproducer": pathlib.Path("/elsewhere"),
        "shapes": {"audio": (1, -1)},
    }
    assert recipe.tolerance == {"rtol": 0.01}
    table = str(tmp_path / "table.npy")
    assert recipe.values == {"rate": "16000", "flags": "1,0", "table": table}


def test_options_in_a_pipelines_text_keep_their_commas(tmp_path: pathlib.Path) -> None:
    recipe = read_recipe(write(tmp_path, 'passes = "a{x=1,y=2},b"'))
    assert recipe.settings["passes"] == "a{x=1,y=2},b"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("pases = 'exact'", "unknown key 'pases'; did you mean 'passes'?"),
        ("colour = 1", "unknown key 'colour'; it has passes"),
        ("dry-run = true\ndry_run = true", "'dry_run' twice"),
        ("passes = 3", "'passes' takes a text or a list of texts, not 3"),
        ("skip = [1]", "'skip' takes"),
        ("verify = 'always'", "one of end, each, off"),
        ("guard_speed = 1", "true or false"),
        ("data = ''", "a path"),
        ("threads = 0", "a whole number from 1"),
        ("threads = true", "a whole number from 1"),
        ("seconds = -1", "a number from 0"),
        ("seconds = nan", "a number from 0"),
        ("tolerance = 1e-3", "a table with rtol and atol"),
        ("tolerance = {atoll = 1}", "a table with rtol and atol"),
        ("shapes = [1]", "a table of shapes"),
        ("[shapes]\nx = [1, -2]", "a table of shapes"),
        ("[shapes]\nx = '1,2'", "a table of shapes"),
        ("[values]\nx = 'text'", "a table of numbers"),
        ("[values]\nx = []", "a table of numbers"),
        ("values = 1", "a table of numbers"),
        ("passes = ", "is not TOML"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: pathlib.Path, text: str, says: str) -> None:
    with pytest.raises(OptionError, match=r"recipe\.toml") as caught:
        read_recipe(write(tmp_path, text))
    assert says in str(caught.value)


def test_missing_recipe(tmp_path: pathlib.Path) -> None:
    with pytest.raises(OptionError, match="cannot be read"):
        read_recipe(tmp_path / "none.toml")
