"""The order of a graph's nodes: each after those whose outputs it takes."""

import heapq
from collections.abc import Iterator, Sequence
from typing import Any

__all__ = ["Cycle", "sort_nodes"]


class Cycle(Exception):
    """Nodes that wait for each other; `node` is one of them."""

    def __init__(self, node: Any) -> None:
        self.node = node
        super().__init__(node.name)


def sort_nodes(nodes: Any) -> None:
    """Sort the nodes of a graph, where they aren't sorted; those that don't depend on each other keep their order.

    Parameters
    ----------
    nodes : repeated NodeProto
        Every value of theirs is made once. A graph in an attribute takes what its nodes take.

    Raises
    ------
    Cycle
    """
    made_by = {name: i for i, node in enumerate(nodes) for name in node.output if name}
    before = [{made_by[name] for name in _taken(node) if name in made_by} for node in nodes]
    if all(max(each, default=-1) < i for i, each in enumerate(before)):
        return
    order = _sorted(before)
    if len(order) < len(before):
        raise Cycle(nodes[min(set(range(len(before))) - set(order))])
    copies = []
    for i in order:
        copy = type(nodes[i])()
        copy.CopyFrom(nodes[i])
        copies.append(copy)
    del nodes[:]
    nodes.extend(copies)


def _sorted(before: Sequence[set[int]]) -> list[int]:
    """Return the indices of what does not hang in a cycle, each after those before it."""
    after: list[list[int]] = [[] for _ in before]
    for i, each in enumerate(before):
        for j in each:
            after[j].append(i)
    left = [len(each) for each in before]
    ready = [i for i, n in enumerate(left) if n == 0]
    order = []
    while ready:
        order.append(heapq.heappop(ready))
        for i in after[order[-1]]:
            left[i] -= 1
            if left[i] == 0:
                heapq.heappush(ready, i)
    return order


def _taken(node: Any) -> Iterator[str]:
    """Yield the names that a node takes, and its graphs take from around them."""
    yield from node.input
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs) if attribute.HasField("g") else attribute.graphs:
            own = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
            own.update(name for inner in graph.node for name in inner.output)
            for inner in graph.node:
                yield from (name for name in _taken(inner) if name not in own)
            yield from (value.name for value in graph.output if value.name not in own)
