"""The plots of docs/benchmarks.md, made from the results alone, as SVG.

They need what reports need: ``pip install 'onnxopt[report]'``.
"""

from __future__ import annotations

import pathlib
from typing import Any

from benchmarks.results import Results
from benchmarks.simplification import REAL_MODELS

__all__ = ["FOLDER", "write"]

FOLDER = pathlib.Path(__file__).parents[1] / "docs" / "plots"
_WIDTH, _HEIGHT = 560, 300


def write() -> None:
    """Write those for which there are results."""
    FOLDER.mkdir(exist_ok=True)
    for name, rows, chart in (
        ("simplification-speed", _speeds(), _speed_chart),
        ("quantization", _quantized(), _quantization_chart),
        ("sparsity", _sparse(), _sparsity_chart),
    ):
        if rows:
            (FOLDER / f"{name}.svg").write_text(_svg(chart(rows)))


def _speeds() -> list[dict[str, Any]]:
    found = []
    for key, row in Results("simplification").items():
        model, _, tool = key.partition("/")
        speed = row.get("speed")
        if model in REAL_MODELS and speed and row.get("agrees"):
            found.append({"model": model, "tool": tool, **speed})
    return found


def _quantized() -> list[dict[str, Any]]:
    found = []
    for key, row in Results("quantization").items():
        model, _, tool = key.partition("/")
        if "speed" in row and row["sqnr_db"] is not None and tool != "onnxopt-exact":
            found.append(
                {"model": model, "tool": tool, "speed": row["speed"][0], "db": row["sqnr_db"]}
            )
    return found


def _sparse() -> list[dict[str, Any]]:
    found = []
    for key, row in Results("sparsity").items():
        model, tool, level = key.split("/")
        if ":" not in level and row.get("sqnr_db") is not None:
            found.append(
                {"model": model, "tool": tool, "zeros": 100 * row["zeros"], "db": row["sqnr_db"]}
            )
    return found


def _speed_chart(rows: list[dict[str, Any]]) -> Any:
    import altair

    base = altair.Chart(_data(rows)).encode(
        x=altair.X("model:N", title=None, axis=altair.Axis(labelAngle=-30)),
        xOffset="tool:N",
        color=altair.Color("tool:N", title=None),
    )
    bars = base.mark_bar().encode(
        y=altair.Y("median:Q", title="speed (times the original's)", scale=altair.Scale(zero=True))
    )
    spread = base.mark_rule(color="black").encode(
        y="low:Q", y2="high:Q", color=altair.value("black")
    )
    return altair.layer(bars, spread).properties(width=_WIDTH, height=_HEIGHT)


def _quantization_chart(rows: list[dict[str, Any]]) -> Any:
    import altair

    return (
        altair.Chart(_data(rows))
        .mark_point(filled=True, size=80)
        .encode(
            x=altair.X("speed:Q", title="speed (times the original's)"),
            y=altair.Y("db:Q", title="signal to noise of the worst output (dB)"),
            color=altair.Color("tool:N", title=None),
            shape=altair.Shape("model:N", title=None),
        )
        .properties(width=_WIDTH, height=_HEIGHT)
    )


def _sparsity_chart(rows: list[dict[str, Any]]) -> Any:
    import altair

    return (
        altair.Chart(_data(rows))
        .mark_line(point=True)
        .encode(
            x=altair.X("zeros:Q", title="zeros (% of the weights)"),
            y=altair.Y("db:Q", title="signal to noise (dB)"),
            color=altair.Color("tool:N", title=None),
            column=altair.Column("model:N", title=None),
        )
        .properties(width=_WIDTH // 2, height=_HEIGHT)
    )


def _data(rows: list[dict[str, Any]]) -> Any:
    import altair

    return altair.Data(values=rows)  # type: ignore[no-untyped-call]


def _svg(chart: Any) -> str:
    import vl_convert

    text: str = vl_convert.vegalite_to_svg(chart.to_dict(), config={"background": "white"})
    return text + "\n"
