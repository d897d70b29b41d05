from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedspk.secagg.graph import Graph


@st.composite
def regular_graphs(draw: st.DrawFn) -> Graph:
    devices = draw(st.integers(4, 60))
    degree = 2 * draw(st.integers(1, (devices - 2) // 2))
    return Graph(devices, degree, draw(st.binary(min_size=32, max_size=32)))


@given(regular_graphs())
def test_everybody_has_as_many_neighbours_as_the_degree_and_is_not_among_them(graph):
    for index in range(graph.devices):
        neighbours = graph.neighbours(index)
        assert len(set(neighbours)) == graph.degree
        assert index not in neighbours
        assert list(neighbours) == sorted(neighbours)
        assert all(type(other) is int and 0 <= other < graph.devices for other in neighbours)


@given(regular_graphs())
def test_neighbours_are_mutual(graph):
    for index in range(graph.devices):
        assert all(index in graph.neighbours(other) for other in graph.neighbours(index))


@given(regular_graphs())
def test_the_graph_is_connected(graph):
    reached, frontier = {0}, [0]
    while frontier:
        found = set(graph.neighbours(frontier.pop())) - reached
        reached |= found
        frontier += found
    assert len(reached) == graph.devices


def test_in_the_full_graph_all_are_neighbours_and_everybody_holds_a_share_of_its_own():
    graph = Graph(5, 4, bytes(32))
    assert graph.neighbours(2) == (0, 1, 3, 4)
    assert graph.holders(2) == (0, 1, 2, 3, 4)


def test_in_a_regular_graph_the_neighbours_hold_the_shares():
    graph = Graph(9, 4, bytes(32))
    assert graph.holders(3) == graph.neighbours(3)


def test_the_ring_is_drawn_from_the_context():
    one, same, other = (Graph(50, 6, context) for context in (b"a" * 32, b"a" * 32, b"b" * 32))
    assert [one.neighbours(i) for i in range(50)] == [same.neighbours(i) for i in range(50)]
    assert [one.neighbours(i) for i in range(50)] != [other.neighbours(i) for i in range(50)]


@pytest.mark.parametrize("index", [0, 7])
def test_over_many_contexts_everybody_is_a_neighbour_equally_often(index):
    contexts = [bytes([a, b]) for a in range(20) for b in range(100)]
    met = Counter(other for c in contexts for other in Graph(11, 4, c).neighbours(index))
    assert set(met) == set(range(11)) - {index}
    # 2000 draws at 4 in 10: mean 800, standard deviation 22
    assert all(abs(count - 800) < 110 for count in met.values())
