"""Why two models decide as they do: what of an input matters to each, and whether that agrees."""

from onnxopt.explain.attribution import (
    AttributionReport,
    Explained,
    check_attribution_possible,
    explain,
)

__all__ = ["AttributionReport", "Explained", "check_attribution_possible", "explain"]
