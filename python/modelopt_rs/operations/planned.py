"""`Planned`: what a plan makes of a model, in bytes."""

import hashlib
import math
from dataclasses import dataclass, replace
from typing import Any

from modelopt_rs.planning.bits import ENTRY
from modelopt_rs.planning.file_plan import FilePlan
from modelopt_rs.planning.loss_table import Coded
from modelopt_rs.stream.model import Source
from modelopt_rs.stream.transform import Copy, Transform

__all__ = ["Planned", "whole"]

GRAPH_ENTRY = 24  # bytes that a graph has for each tensor besides its name
# Those of the nodes that take a weight's codes in the place of one that took the weight: some more than there are.
NODES = 200


@dataclass(slots=True)
class Planned:
    """What a plan makes of a model.

    Attributes
    ----------
    plan : FilePlan
    codes : mapping of str to Coded
        The bytes of weights in their codes; errors are 0.
    copied, elements : mapping of str to int
        Bytes of all tensors as they are, and their elements.
    overhead : int
        Bytes besides tensors.
    fingerprint : str
        Of the model and the options.
    has_graph : bool
    """

    plan: FilePlan
    codes: dict[str, Coded]
    copied: dict[str, int]
    elements: dict[str, int]
    overhead: int
    fingerprint: str
    has_graph: bool

    @classmethod
    def of(cls, source: Source, plan: FilePlan, options: str) -> "Planned":
        """Count the bytes of a plan; options are part of the fingerprint."""
        infos, has_graph = plan.view.tensors, source.graph is not None
        entry, nodes = (GRAPH_ENTRY, NODES) if has_graph else (ENTRY, 0)
        coded = {name: each for name, each in plan.transforms.items() if not isinstance(each, Copy)}
        # Nodes and what they give have names that are made of those of the weights.
        codes = {
            name: Coded(_bytes(each, entry) + nodes + (6 * len(name) if has_graph else 0), 0.0)
            for name, each in coded.items()
        }
        copied = {name: _bytes(Copy(info), entry) for name, info in infos.items()}
        elements = {name: math.prod(info.shape) for name, info in infos.items()}
        said = [(name, info.dtype, info.shape) for name, info in infos.items()]
        of = hashlib.sha256(f"{said} {source.nbytes} {options}".encode()).hexdigest()
        inside = sum(info.nbytes for info in source.tensors.values())
        # A graph is there besides its tensors; what a header is, the names say.
        overhead = source.nbytes - inside - sum(len(name) + entry for name in infos) if has_graph else 8 + ENTRY
        if has_graph and codes:
            # What nodes take is known of the graph with all weights in this code: each gets its share of that.
            about = overhead + sum(codes[name].nbytes if name in codes else copied[name] for name in plan.transforms)
            share = (whole(source, plan) - about) // len(codes)
            codes = {name: replace(each, nbytes=each.nbytes + share) for name, each in codes.items()}
        return cls(plan, codes, copied, elements, overhead, of, has_graph)

    def transform(self, name: str) -> Any:
        """Return what codes a weight."""
        return self.plan.transforms[name]


def whole(source: Source, plan: FilePlan) -> int:
    """Return the bytes of the file that a plan would make of an ONNX model."""
    from modelopt_rs.containers.onnx.layout import inline, to_proto

    infos = [info for each in plan.transforms.values() for info in each.outputs]
    return inline(to_proto(source.graph, infos), infos).nbytes


def _bytes(transform: Transform, entry: int) -> int:
    return sum(info.nbytes + len(info.name) + entry for info in transform.outputs)
