"""Operators of ours: a trace writes them, and a pass replaces them by those of ONNX and ONNX Runtime.

It does not know which there are, or what they compute.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from string import Template

import onnx
from onnx import NodeProto, parser

DOMAIN = "blitz"
"""Of operators that exist between the export and these passes alone."""

_HEADER = '<ir_version: 9, opset_import: ["": 17, "com.microsoft": 1]>'


def parsed(graph: Template, *given: Mapping[str, object], **others: object) -> list[NodeProto]:
    """Nodes of a graph in ONNX's text form, with its names filled in; of two values the later counts."""
    values: dict[str, object] = {}
    for each in (*given, others):
        values.update(each)
    text = graph.substitute(values)
    return list(parser.parse_model(f"{_HEADER}{text}").graph.node)


def replace_nodes(model: onnx.ModelProto, nodes: Sequence[NodeProto]) -> None:
    """Give the graph these nodes, none of which is of DOMAIN, and forget that there was one."""
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    domains = [each for each in model.opset_import if each.domain != DOMAIN]
    del model.opset_import[:]
    model.opset_import.extend(domains)
