"""Samples and measures that a quantizing run cannot use: what, where, and nothing lost."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import pytest

from tests.cli.conftest import run
from tests.differential import parse

Fails = Callable[..., str]
RNG = np.random.default_rng(0)
X = RNG.standard_normal((12, 16)).astype(np.float32)
K = np.arange(12)


@pytest.fixture
def net(tmp_path: pathlib.Path) -> pathlib.Path:
    """Two products, the second of which reads what is NaN for inputs below zero in the first."""
    model = parse(
        """g (float[N, 16] x, int64[N] k) => (float[N, 32] y) {
            a = MatMul(x, w1) [root] s = Sqrt(x) b = Concat<axis=1>(a, s) c = MatMul(b, w2)
            f = Cast<to = 1>(k) o = Constant<value_ints = [-1, 1]>() g = Reshape(f, o)
            y = Add(c, g)
        }""",
        {
            "w1": RNG.standard_normal((16, 48)).astype(np.float32),
            "w2": RNG.standard_normal((64, 32)).astype(np.float32),
        },
    )
    path = tmp_path / "net.onnx"
    onnx.save(model, path)
    return path


@pytest.fixture
def output(tmp_path: pathlib.Path) -> pathlib.Path:
    """An output of an earlier run, which must survive."""
    path = tmp_path / "out.onnx"
    path.write_bytes(b"an earlier output")
    return path


POSITIVE = np.abs(X) + 0.1


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"z": POSITIVE, "k": K}, ("no array for input 'x'", "it has z, k")),
        ({"x": POSITIVE}, ("no array for input 'k'",)),
        ({"x": POSITIVE[:, :8], "k": K}, ("array 'x'", "[1, 8]", "takes [any, 16]")),
        ({"x": POSITIVE[:, :, None], "k": K}, ("array 'x'", "[16, 1]")),
        ({"x": POSITIVE, "k": K.astype(np.float32)}, ("array 'k'", "float32", "int64")),
        ({"x": POSITIVE.astype(str), "k": K}, ("array 'x'", "no numbers")),
        ({"x": POSITIVE, "k": K[:5]}, ("different numbers of samples",)),
        ({"x": POSITIVE[:0], "k": K[:0]}, ("holds no samples",)),
    ],
)
def test_arrays_that_do_not_fit(
    net: pathlib.Path,
    output: pathlib.Path,
    fails: Fails,
    arrays: Mapping[str, Any],
    says: tuple[str, ...],
) -> None:
    data = net.with_name("data.npz")
    np.savez(data, **arrays)
    fails("optimize", net, output, "--data", data, says=("data.npz", *says))


def test_a_folder_without_samples(net: pathlib.Path, output: pathlib.Path, fails: Fails) -> None:
    folder = net.with_name("samples")
    folder.mkdir()
    fails("optimize", net, output, "--data", folder, says=("samples", "no .npz files"))


def test_a_file_of_a_folder_that_does_not_fit(
    net: pathlib.Path, output: pathlib.Path, fails: Fails
) -> None:
    folder = net.with_name("samples")
    folder.mkdir()
    for index in range(5):
        np.savez(folder / f"{index}.npz", x=POSITIVE[index : index + 1], k=K[:1])
    np.savez(folder / "5.npz", x=POSITIVE[:1, :8], k=K[:1])
    fails("optimize", net, output, "--data", folder, says=("5.npz", "[1, 8]", "[any, 16]"))


@pytest.mark.parametrize(("number", "word"), [(np.nan, "NaN"), (np.inf, "infinite")])
def test_numbers_that_are_not_finite(
    net: pathlib.Path, output: pathlib.Path, fails: Fails, number: float, word: str
) -> None:
    rows = POSITIVE.copy()
    rows[8, 3] = number
    np.savez(net.with_name("data.npz"), x=rows, k=K)
    arguments = ("optimize", net, output, "--data", net.with_name("data.npz"))
    fails(*arguments, says=("tensor 'x'", word, "sample 9 of data.npz"))


def test_an_inner_tensor_that_is_not_finite_is_named_with_its_file(
    net: pathlib.Path, output: pathlib.Path, fails: Fails
) -> None:
    folder = net.with_name("samples")
    folder.mkdir()
    for index in range(8):
        rows = POSITIVE[index : index + 1].copy()
        rows[0, 0] = -1.0 if index == 6 else rows[0, 0]
        np.savez(folder / f"part{index}.npz", x=rows, k=K[:1])
    said = fails("optimize", net, output, "--data", folder, says=("NaN", "part6.npz"))
    assert "tensor 's'" in said or "tensor 'b'" in said


@pytest.mark.parametrize("value", [0.0, 2.5])
def test_constant_tensors_are_no_trouble(
    net: pathlib.Path, tmp_path: pathlib.Path, value: float
) -> None:
    np.savez(net.with_name("data.npz"), x=np.full_like(X, value), k=np.zeros_like(K))
    arguments = ("--data", net.with_name("data.npz"), "--seconds", "0.05", "--goal", "size")
    result = run("optimize", net, tmp_path / "made.onnx", *arguments)
    assert result.exit_code == 0, result.output
    assert "Undone" not in result.stdout


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("raise ValueError('no labels here')", ("ValueError", "no labels here")),
        ("return float('nan')", ("nan", "no score")),
        ("return 'good'", ("ValueError",)),
    ],
)
def test_a_measure_that_does_not_measure(
    net: pathlib.Path,
    output: pathlib.Path,
    fails: Fails,
    monkeypatch: pytest.MonkeyPatch,
    body: str,
    says: tuple[str, ...],
) -> None:
    name = f"measure_{abs(hash(body))}"
    (net.parent / f"{name}.py").write_text(f"def score(path):\n    {body}\n")
    monkeypatch.chdir(net.parent)
    np.savez(net.with_name("data.npz"), x=POSITIVE, k=K)
    arguments = ("optimize", net, output, "--data", net.with_name("data.npz"))
    measure = ("--evaluate", f"{name}:score", "--goal", "size", "--seconds", "0.05")
    fails(*arguments, *measure, says=(f"{name}:score", *says))
