"""Work that is done by several workers at once, with the same result as by one.

Whoever has work to give makes jobs of it whose number and order do not depend on the workers, and
takes the results in the order of the jobs. A `Crew` does them: here, in processes of its own, or in
a dask cluster. A worker may be lost on the way; its jobs are done again.
"""

from onnxopt.parallel.crew import ALONE, Alone, Crew
from onnxopt.parallel.opening import open_crew

__all__ = ["ALONE", "Alone", "Crew", "open_crew"]
