"""The order in which a loaded graph meets its variables, from the input side to the output."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter
from typing import Any

import tensorflow as tf

_CALLS = ("PartitionedCall", "StatefulPartitionedCall")


@dataclass(frozen=True)
class _Flow:
    """What a node of the graph carries.

    Attributes:
        depth: Number of ops since the input; -1 if the input does not reach it.
        variables: The variables that it was computed from since, by position.
    """

    depth: int = -1
    variables: frozenset[int] = frozenset()


def variables_by_depth(function: Any, variables: Sequence[tf.Variable]) -> list[int]:
    """Orders variables by the depth at which data first meets them.

    The depth of an op is the length of the longest path to it from an input, through the bodies of
    the functions that are called. Ties keep the order given, and variables that data does not meet
    come last.

    Args:
        function: A concrete function.
        variables: The variables to order.

    Returns:
        Positions in `variables`, input side first.
    """
    graph = function.graph
    flows = {tensor.op.name: _Flow(0) for tensor in graph.inputs}
    # What a function captures of a distributed variable is the variable itself.
    positions = {
        id(v if isinstance(v, tf.distribute.DistributedValues) else v.handle): i
        for i, v in enumerate(variables)
    }
    for outer, inner in graph.captures:
        position = positions.get(id(outer))
        flows[inner.op.name] = _Flow(variables=frozenset(() if position is None else (position,)))
    definition = graph.as_graph_def()
    library = {body.signature.name: body for body in definition.library.function}
    met: dict[int, int] = {}
    _walk(definition.node, flows, library, met)
    return sorted(range(len(variables)), key=lambda i: (met.get(i, math.inf), i))


def _walk(
    nodes: Iterable[Any], flows: dict[str, _Flow], library: Mapping[str, Any], met: dict[int, int]
) -> int:
    """Fills in the flow of every node; returns the largest depth."""
    for node in _in_order(nodes, flows):
        sources = [flows.get(_name(i), _Flow()) for i in node.input if not i.startswith("^")]
        depth = max((source.depth for source in sources), default=-1)
        variables = frozenset().union(*(source.variables for source in sources))
        body = library.get(node.attr["f"].func.name) if node.op in _CALLS else None
        if body is not None:
            arguments = (argument.name for argument in body.signature.input_arg)
            inner = dict(zip(arguments, sources, strict=True))
            flows[node.name] = _Flow(_walk(body.node_def, inner, library, met))
        elif depth < 0:
            flows[node.name] = _Flow(variables=variables)
        else:
            for variable in variables:
                met[variable] = min(depth, met.get(variable, depth))
            flows[node.name] = _Flow(depth + 1)
    return max((flow.depth for flow in flows.values()), default=-1)


def _in_order(nodes: Iterable[Any], known: Mapping[str, _Flow]) -> Iterable[Any]:
    unknown = {node.name: node for node in nodes if node.name not in known}
    sorter = TopologicalSorter(
        {name: [_name(i) for i in node.input] for name, node in unknown.items()}
    )
    return [unknown[name] for name in sorter.static_order() if name in unknown]


def _name(reference: str) -> str:
    """`conv:output:0` and `^conv` both speak of the node `conv`."""
    return reference.split(":")[0].lstrip("^")
