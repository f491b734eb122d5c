"""The long road: prune, distill, quantize, distill again, encode; each stage judged."""

from onnxopt.compress.journal import InterruptedCompressionError
from onnxopt.compress.report import CompressReport, StageReport
from onnxopt.compress.road import compress
from onnxopt.compress.settings import CompressSettings, Target

__all__ = [
    "CompressReport",
    "CompressSettings",
    "InterruptedCompressionError",
    "StageReport",
    "Target",
    "compress",
]
