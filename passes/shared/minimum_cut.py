"""Minimum cuts of a directed network, by the algorithm of Dinic.

Y. Dinitz, Algorithm for solution of a problem of maximum flow in networks with power estimation,
1970. At most O(V^2 E); for the networks here, whose flow is a few hundred units, near linear.
"""

from __future__ import annotations

from collections import deque

__all__ = ["Network"]


class Network:
    """A network whose nodes are numbered in the order in which they are added.

    Attributes:
        source: The node where the flow begins.
        sink: The node where it ends.
    """

    def __init__(self) -> None:
        self._edges: list[list[int]] = []  # edge numbers that leave each node
        self._heads: list[int] = []
        self._capacity: list[int] = []  # edge 2k and its opposite 2k + 1
        self.source = self.add_node()
        self.sink = self.add_node()

    def add_node(self) -> int:
        """Add a node and return its number."""
        self._edges.append([])
        return len(self._edges) - 1

    def add_edge(self, tail: int, head: int, capacity: int) -> None:
        """Add an edge; cutting it costs its capacity when ``tail`` is on the side of the source."""
        for start, end, size in ((tail, head, capacity), (head, tail, 0)):
            self._edges[start].append(len(self._heads))
            self._heads.append(end)
            self._capacity.append(size)

    def source_side(self) -> set[int]:
        """Nodes on the side of the source in a cut of least capacity; of several, the fewest."""
        while self.sink in (levels := self._levels()):
            position = [0] * len(self._edges)
            while self._augment(levels, position):
                pass
        return set(levels)

    def _levels(self) -> dict[int, int]:
        levels = {self.source: 0}
        queue = deque([self.source])
        while queue:
            node = queue.popleft()
            for edge in self._edges[node]:
                head = self._heads[edge]
                if self._capacity[edge] > 0 and head not in levels:
                    levels[head] = levels[node] + 1
                    queue.append(head)
        return levels

    def _augment(self, levels: dict[int, int], position: list[int]) -> bool:
        """Push flow along one shortest path; False when none is left."""
        path: list[int] = []
        node = self.source
        while node != self.sink:
            edges = self._edges[node]
            while position[node] < len(edges):
                edge = edges[position[node]]
                head = self._heads[edge]
                if self._capacity[edge] > 0 and levels.get(head) == levels[node] + 1:
                    break
                position[node] += 1
            else:
                if not path:
                    return False
                edge = path.pop()
                node = self._heads[edge ^ 1]
                position[node] += 1
                continue
            path.append(edge)
            node = head
        flow = min(self._capacity[edge] for edge in path)
        for edge in path:
            self._capacity[edge] -= flow
            self._capacity[edge ^ 1] += flow
        return True
