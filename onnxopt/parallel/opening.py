"""The crew that a user asks for."""

from __future__ import annotations

from onnxopt.errors import OptionError
from onnxopt.parallel.crew import ALONE, Crew
from onnxopt.parallel.processes import Processes

__all__ = ["open_crew"]


def open_crew(workers: int = 1, scheduler: str | None = None) -> Crew:
    """Whoever is to do the work.

    Args:
        workers: Processes on this machine; 1 is this one.
        scheduler: Address of a dask scheduler, whose workers are taken instead.

    Raises:
        OptionError: When both are asked for, or the cluster cannot be reached.
    """
    if scheduler is not None:
        if workers > 1:
            raise OptionError("name workers of this machine or a scheduler, not both")
        from onnxopt.parallel.cluster import Cluster

        return Cluster(scheduler)
    return ALONE if workers <= 1 else Processes(workers)
