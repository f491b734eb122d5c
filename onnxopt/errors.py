"""The errors a user can meet. Each message is one sentence: what, where, and the way out."""

from __future__ import annotations

__all__ = [
    "CalibrationError",
    "EvaluationError",
    "FeedError",
    "ModelError",
    "OnnxoptError",
    "OptionError",
    "PassFailure",
    "RuntimeCrashError",
    "RuntimeRefusalError",
    "SampleError",
    "UnsupportedModelError",
    "WorkerLostError",
]


class OnnxoptError(Exception):
    """Base of every error that is raised on purpose; the command line prints it and exits 1."""


class ModelError(OnnxoptError):
    """A model file cannot be read, is not valid, or cannot be written."""


class OptionError(OnnxoptError):
    """An option, pass, pipeline or recipe is not understood."""


class FeedError(OnnxoptError):
    """Input data does not fit the model's signature, or none could be made up."""


class CalibrationError(OnnxoptError):
    """Data, or what a model makes of them, cannot be calibrated with."""


class SampleError(CalibrationError):
    """A sample cannot be calibrated with.

    Args:
        problem: What is wrong, without the sample.
        sample: What the sample is called: its number among those that were read, until who reads
            them says more.
    """

    def __init__(self, problem: str, sample: int | str) -> None:
        super().__init__(problem, sample)
        self.problem, self.sample = problem, sample

    def __str__(self) -> str:
        named = f"sample {self.sample}" if isinstance(self.sample, int) else self.sample
        return f"{self.problem}, in {named}"


class EvaluationError(OnnxoptError):
    """The user's own measure of a model failed."""


class RuntimeRefusalError(OnnxoptError):
    """ONNX Runtime raised an error when it loaded or ran a model."""


class RuntimeCrashError(OnnxoptError):
    """The process that ran a model in ONNX Runtime died or had to be stopped."""


class WorkerLostError(OnnxoptError):
    """The workers that were to do a piece of work died, again and again."""


class UnsupportedModelError(OnnxoptError):
    """A model holds nodes that cannot be turned into PyTorch."""


class PassFailure(OnnxoptError):  # noqa: N818 - it is an outcome that the optimizer handles
    """A pass raised an exception.

    Attributes:
        pass_name: The pass that failed.
    """

    def __init__(self, pass_name: str, message: str) -> None:
        super().__init__(f"pass '{pass_name}' failed: {message}")
        self.pass_name = pass_name
