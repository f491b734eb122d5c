"""Which region of a model gets which treatment, under an accuracy budget and by measured time.

Nothing here knows what a treatment is. Whoever asks describes the regions, what can be done to
each, and how to write a model with some of that done (`Subject`).

1. The model is run as it is and with the whole of it treated in each way; the runtime's own profile
   says how long each region takes (`trades`).
2. Each treatment of each region is tried alone, on a few samples: how much noise it makes in the
   outputs. Noise of small, unrelated errors adds up, so the sum over a plan foretells the plan's.
3. From the fastest plan, the move that takes away most noise for the time it costs is made again
   and again, down to the untouched model. The first plan on that way that keeps the budget in
   whole-model runs is found by bisection, and regions are put back where the budget still holds
   (`planning`).
4. The last word have samples that nothing was chosen by, and a paired race against the untouched
   model. A plan that fails there is given up for one further down.
"""

from __future__ import annotations

from onnxopt.search.finding import Finding, Point
from onnxopt.search.planning import search
from onnxopt.search.subject import Choices, Subject

__all__ = ["Choices", "Finding", "Point", "Subject", "search"]
