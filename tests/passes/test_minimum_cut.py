import itertools

from hypothesis import given, settings
from hypothesis import strategies as st
from onnxopt.passes.shared.minimum_cut import Network

SIZE = 6
EDGES = st.lists(
    st.tuples(st.integers(0, SIZE - 1), st.integers(0, SIZE - 1), st.integers(1, 9)), max_size=14
)


@given(EDGES)
@settings(max_examples=200, deadline=None)
def test_no_cut_is_cheaper(edges: list[tuple[int, int, int]]) -> None:
    network = Network()
    for _ in range(SIZE - 2):
        network.add_node()
    for tail, head, capacity in edges:
        network.add_edge(tail, head, capacity)
    inner = [node for node in range(SIZE) if node not in (network.source, network.sink)]

    def cost(side: set[int]) -> int:
        return sum(size for tail, head, size in edges if tail in side and head not in side)

    sides = [
        {network.source, *chosen}
        for count in range(len(inner) + 1)
        for chosen in itertools.combinations(inner, count)
    ]
    found = network.source_side()
    cheapest = min(map(cost, sides))
    assert network.source in found
    assert network.sink not in found
    assert cost(found) == cheapest
    assert len(found) == min(len(side) for side in sides if cost(side) == cheapest)
