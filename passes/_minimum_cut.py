"""Minimum cut of a flow network (Dinic's algorithm).

E. A. Dinic, Algorithm for solution of a problem of maximum flow in networks with power estimation,
Soviet Math. Doklady 11 (1970); by the max-flow min-cut theorem of Ford and Fulkerson the vertices
that the source still reaches are one side of a cheapest cut.
"""

from __future__ import annotations

import collections

__all__ = ["UNCUTTABLE", "FlowNetwork"]

#: A capacity that no sum of real ones reaches.
UNCUTTABLE = 1 << 100


class FlowNetwork:
    """A directed network with integer capacities. Vertex 0 is the source, vertex 1 the sink."""

    source, sink = 0, 1

    def __init__(self) -> None:
        # Edge e leads to _heads[e]; its reverse is e ^ 1.
        self._heads: list[int] = []
        self._capacities: list[int] = []
        self._edges: list[list[int]] = [[], []]

    def vertex(self) -> int:
        """Add a vertex."""
        self._edges.append([])
        return len(self._edges) - 1

    def edge(self, tail: int, head: int, capacity: int) -> None:
        """Add an edge."""
        self._edges[tail].append(len(self._heads))
        self._heads.append(head)
        self._capacities.append(capacity)
        self._edges[head].append(len(self._heads))
        self._heads.append(tail)
        self._capacities.append(0)

    def source_side(self) -> set[int]:
        """Vertices on the source's side of the cheapest cut; the smallest such set.

        Uses the capacities up: call it once.
        """
        while True:
            levels = self._levels()
            if self.sink not in levels:
                return set(levels)
            self._saturate(levels)

    def _levels(self) -> dict[int, int]:
        """Distance from the source of each vertex that can still be reached."""
        levels = {self.source: 0}
        queue = collections.deque([self.source])
        while queue:
            vertex = queue.popleft()
            for edge in self._edges[vertex]:
                head = self._heads[edge]
                if self._capacities[edge] > 0 and head not in levels:
                    levels[head] = levels[vertex] + 1
                    queue.append(head)
        return levels

    def _saturate(self, levels: dict[int, int]) -> None:
        """Push flow along shortest paths until none is left."""
        following = [0] * len(self._edges)
        path: list[int] = []
        vertex = self.source
        while True:
            if vertex == self.sink:
                flow = min(self._capacities[edge] for edge in path)
                for edge in path:
                    self._capacities[edge] -= flow
                    self._capacities[edge ^ 1] += flow
                path, vertex = [], self.source
                continue
            edges = self._edges[vertex]
            while following[vertex] < len(edges):
                edge = edges[following[vertex]]
                head = self._heads[edge]
                if self._capacities[edge] > 0 and levels.get(head) == levels[vertex] + 1:
                    path.append(edge)
                    vertex = head
                    break
                following[vertex] += 1
            else:
                if not path:
                    return
                vertex = self._heads[path.pop() ^ 1]
                following[vertex] += 1
