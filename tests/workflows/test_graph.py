"""Graphs: links, order, cycles."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagen.workflows import graph as graphs


def made_of(**sources: list[str]) -> dict[str, Any]:
    """A graph of nodes that are made of others: `made_of(a=["b"], b=[])`."""
    return {
        node: {"class_type": "A", "inputs": {f"in{n}": [one, 0] for n, one in enumerate(some)}}
        for node, some in sources.items()
    }


@pytest.mark.parametrize(
    "value",
    [["1"], ["1", 0, 0], [1, 0], ["1", "0"], ["1", 0.0], ["1", True], ["1", -1], [], "1", None, {}],
)
def test_what_is_no_node_and_slot_is_no_link(value):
    assert graphs.link(value) is None


def test_a_link_is_the_id_of_a_node_and_a_slot():
    assert graphs.link(["1", 2]) == ("1", 2)


def test_the_nearest_come_first_upstream_and_each_once():
    graph = made_of(save=["decode"], decode=["vae", "sampler"], sampler=["vae"], vae=[], other=[])
    assert graphs.upstream(graph, ["save"]) == ["save", "decode", "vae", "sampler"]


node_ids = st.sampled_from("abcdefg")
any_graphs = st.fixed_dictionaries(
    {}, optional=dict.fromkeys("abcdefg", st.lists(node_ids, max_size=3))
).map(lambda sources: made_of(**sources))


@given(any_graphs)
@settings(max_examples=60, deadline=None)
def test_in_order_each_node_comes_after_what_it_is_made_of(graph):
    order = graphs.in_order(graph)
    assert len({*order}) == len(order)
    for at, node in enumerate(order):
        assert {source.node for _, source in graphs.links(graph, node)} <= {*order[:at]}


@given(any_graphs)
@settings(max_examples=60, deadline=None)
def test_a_cycle_leads_round_and_there_is_one_where_an_order_is_not(graph):
    loop = graphs.cycle(graph)
    assert bool(loop) == (len(graphs.in_order(graph)) < len(graph))
    for node, source in zip(loop, [*loop[1:], *loop[:1]], strict=True):
        assert source in {found.node for _, found in graphs.links(graph, node)}


def test_a_long_chain_needs_no_recursion():
    many = {str(n): [str(n + 1)] for n in range(5_000)} | {"5000": []}
    graph = made_of(**many)
    assert len(graphs.upstream(graph, ["0"])) == 5_001
    assert graphs.in_order(graph)[0] == "5000"
    assert graphs.cycle(graph) == []
    assert len(graphs.cycle({**graph, **made_of(**{"5000": ["0"]})})) == 5_001
