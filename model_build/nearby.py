"""Writes attention to near or earlier tokens: for long texts, in blocks of queries.

It does not know architectures, quantisation or how graphs run.

See docs/decisions/073-blocks-of-queries.md.
"""

from __future__ import annotations

from string import Template

import onnx
from onnx import NodeProto, helper

from model_build.own_operators import DOMAIN, parsed, replace_nodes

NEARBY = "NearbyAttention"
"""Query and key (B, heads, T, D), value (B, heads, T, E), and which tokens are real, (B, T), the same in
all layers -> (B, T, heads * E). Attributes: num_heads, scale; before and after: how many tokens a query
sees to either side, ALL being no limit."""
_TENSORS = "query", "key", "value", "real", "y"
ALL = 1 << 30
"""A reach without end."""

_SHORT_TOKENS = 384
"""Texts up to here have all scores computed at once, which is faster."""
_ROWS, _ROWS_OF_WINDOWS = 256, 64
"""Queries in a block. More of them have more keys in vain, and fewer look at all keys more often: narrow
windows, of _NARROW tokens at most, have few of these."""
_NARROW = 256

# nearby_deepest: how far below the largest score of a row others may be. Their share is 3e-33 then; of
# lower scores it is denormal, which processors are slow with.
# Names end with how many dimensions a tensor of sizes has. Constants are nodes: what only an inner graph
# reads, other passes would take for unused.
_ONCE = Template("""
once () => () {
  nearby_shape = Shape ("$real")
  nearby_one_0 = Constant <value = int64 {1}> ()
  nearby_one_1 = Constant <value = int64[1] {1}> ()
  nearby_two_1 = Constant <value = int64[1] {2}> ()
  nearby_three_1 = Constant <value = int64[1] {3}> ()
  nearby_zero_0 = Constant <value = int64 {0}> ()
  nearby_zero_1 = Constant <value = int64[1] {0}> ()
  nearby_zero_4 = Constant <value = int64[4] {0, 0, 0, 0}> ()
  nearby_rest_1 = Constant <value = int64[1] {-1}> ()
  nearby_deepest = Constant <value = float {75}> ()
  nearby_heads_3 = Constant <value = int64[3] {0, 0, -1}> ()
  nearby_rows_0 = Constant <value = int64 {$rows}> ()
  nearby_rows_1 = Constant <value = int64[1] {$rows}> ()
  nearby_tokens_0 = Gather (nearby_shape, nearby_one_0)
  nearby_tokens_1 = Gather (nearby_shape, nearby_one_1)
  nearby_short_0 = Constant <value = int64 {$short}> ()
  nearby_is_long = Greater (nearby_tokens_0, nearby_short_0)
  nearby_before_0 = Sub (nearby_tokens_0, nearby_one_0)
  nearby_full_0 = Div (nearby_before_0, nearby_rows_0)
  nearby_blocks_0 = Add (nearby_full_0, nearby_one_0)
  nearby_true = Constant <value = bool {1}> ()
  nearby_row_1 = Range (nearby_zero_0, nearby_rows_0, nearby_one_0)
  nearby_row_2 = Unsqueeze (nearby_row_1, nearby_one_1)
  nearby_real = Cast <to = 1> ("$real")
  nearby_one = Constant <value = float {1}> ()
  nearby_padding = Sub (nearby_real, nearby_one)
  nearby_much = Constant <value = float {1e30}> ()
  nearby_padded = Mul (nearby_padding, nearby_much)
  nearby_middle_2 = Constant <value = int64[2] {1, 2}> ()
  nearby_told = Unsqueeze (nearby_padded, nearby_middle_2)
}
""")

# What is added to scores. Keys from low to high, queries that ask, padding told.
_BIAS = Template("""
    ${at}_key_1 = Range (${at}_low_0, ${at}_high_0, nearby_one_0)
    ${at}_distance_2 = Sub (${at}_key_1, ${at}_asking_2)
    ${at}_distance = Cast <to = 1> (${at}_distance_2)
    ${at}_after = Constant <value = float {$after}> ()
    ${at}_ahead = Sub (${at}_distance, ${at}_after)
    ${at}_too_late = Relu (${at}_ahead)
    ${at}_before = Constant <value = float {-$before}> ()
    ${at}_behind = Sub (${at}_before, ${at}_distance)
    ${at}_too_early = Relu (${at}_behind)
    ${at}_unseen = Add (${at}_too_late, ${at}_too_early)
    ${at}_far = Mul (${at}_unseen, nearby_much)
    ${at}_bias = Sub (${at}_told, ${at}_far)
""")

# Once for all layers that see equally far. A long text has no use for it, and not the memory.
_SHORT = Template("""
short () => () {
  ${kind}_bias = If (nearby_is_long) <
    then_branch = ${kind}_none () => (float[?, ?, ?, ?] ${kind}_nothing) {
      ${kind}_nothing = Identity (nearby_told)
    },
    else_branch = ${kind}_all () => (float[?, ?, ?, ?] ${kind}_short_bias) {
      ${kind}_short_low_0 = Identity (nearby_zero_0)
      ${kind}_short_high_0 = Identity (nearby_tokens_0)
      ${kind}_short_asking_1 = Range (nearby_zero_0, nearby_tokens_0, nearby_one_0)
      ${kind}_short_asking_2 = Unsqueeze (${kind}_short_asking_1, nearby_one_1)
      ${kind}_short_told = Identity (nearby_told)
$bias
    }
  >
}
""")

_LAYER = Template("""
layer () => () {
  "$y" = If (nearby_is_long) <
    then_branch = ${at}_blocks () => (float[?, ?, ?] ${at}_long) {
      ${at}_stacked = Loop (nearby_blocks_0, nearby_true) <
        body = ${at}_block (int64 ${at}_number, bool ${at}_go)
          => (bool ${at}_going, float[?, ?, ?] ${at}_part) {
          ${at}_going = Identity (${at}_go)
          ${at}_start_1 = Mul (${at}_number, nearby_rows_1)
          ${at}_stop_1 = Add (${at}_start_1, nearby_rows_1)
          ${at}_end_1 = Min (${at}_stop_1, nearby_tokens_1)
          ${at}_some_heads = Slice ("$query", ${at}_start_1, ${at}_end_1, nearby_two_1)
          ${at}_some_apart = Transpose <perm = [0, 2, 1, 3]> (${at}_some_heads)
          ${at}_some_query = Reshape (${at}_some_apart, nearby_heads_3)
          ${at}_missing_1 = Sub (${at}_stop_1, ${at}_end_1)
          ${at}_pads = Concat <axis = 0> (nearby_zero_4, ${at}_missing_1, nearby_zero_1)
          ${at}_query = Pad (${at}_some_query, ${at}_pads)
          ${at}_behind_1 = Constant <value = int64[1] {$before}> ()
          ${at}_first_1 = Sub (${at}_start_1, ${at}_behind_1)
          ${at}_low_1 = Max (${at}_first_1, nearby_zero_1)
          ${at}_ahead_1 = Constant <value = int64[1] {$after}> ()
          ${at}_last_1 = Add (${at}_stop_1, ${at}_ahead_1)
          ${at}_high_1 = Min (${at}_last_1, nearby_tokens_1)
          ${at}_key = Slice ("$key", ${at}_low_1, ${at}_high_1, nearby_two_1)
          ${at}_value = Slice ("$value", ${at}_low_1, ${at}_high_1, nearby_two_1)
          ${at}_told = Slice (nearby_told, ${at}_low_1, ${at}_high_1, nearby_three_1)
          ${at}_low_0 = Squeeze (${at}_low_1)
          ${at}_high_0 = Squeeze (${at}_high_1)
          ${at}_asking_2 = Add (${at}_start_1, nearby_row_2)
$bias
          ${at}_part = com.microsoft.MultiHeadAttention <num_heads = $num_heads, scale = $scale>
            (${at}_query, ${at}_key, ${at}_value, "", "", ${at}_bias)
        }
      >
      ${at}_turned = Transpose <perm = [1, 0, 2, 3]> (${at}_stacked)
      ${at}_width_1 = Shape <start = 3> (${at}_stacked)
      ${at}_sizes = Concat <axis = 0> (nearby_zero_1, nearby_rest_1, ${at}_width_1)
      ${at}_joined = Reshape (${at}_turned, ${at}_sizes)
      ${at}_long = Slice (${at}_joined, nearby_zero_1, nearby_tokens_1, nearby_one_1)
    },
    else_branch = ${at}_whole () => (float[?, ?, ?] ${at}_short) {
      ${at}_scores = com.microsoft.FusedMatMul <transB = 1, alpha = $scale> ("$query", "$key")
      ${at}_told_scores = Add (${at}_scores, ${kind}_bias)
      ${at}_most = ReduceMax <axes = [-1], keepdims = 1> (${at}_told_scores)
      ${at}_least = Sub (${at}_most, nearby_deepest)
      ${at}_held = Max (${at}_told_scores, ${at}_least)
      ${at}_shares = Softmax <axis = -1> (${at}_held)
      ${at}_mixed = MatMul (${at}_shares, "$value")
      ${at}_apart = Transpose <perm = [0, 2, 1, 3]> (${at}_mixed)
      ${at}_short = Reshape (${at}_apart, nearby_heads_3)
    }
  >
}
""")


def write_nearby(model: onnx.ModelProto) -> int:
    """Replace each NEARBY in place by standard operators and ONNX Runtime's.

    The most tokens of a short text; 0: there was none to replace.

    Short texts (padded) run through one operator with a bias of scores; longer ones
    in blocks of queries, each with the keys that any of its queries may see. Memory then grows with
    tokens, and not with their square. An engine must not run both sorts in one batch, as padding
    would decide how a short text is computed, and so its last bits.
    """
    written: list[NodeProto] = []
    kinds: set[str] = set()
    layers = 0
    for node in model.graph.node:
        if (node.domain, node.op_type) != (DOMAIN, NEARBY):
            written.append(node)
            continue
        names = dict(zip(_TENSORS, [*node.input, *node.output], strict=True))
        if not layers:
            written += parsed(_ONCE, names, rows=_rows(model.graph), short=_SHORT_TOKENS)
        layers += 1
        attributes = {each.name: helper.get_attribute_value(each) for each in node.attribute}
        kind = f"nearby_{attributes['before']}_{attributes['after']}"
        if kind not in kinds:
            kinds.add(kind)
            bias = _BIAS.substitute(attributes, at=f"{kind}_short")
            written += parsed(_SHORT, kind=kind, bias=bias)
        at = f"nearby_{layers}"
        bias = _BIAS.substitute(attributes, at=at)
        written += parsed(_LAYER, attributes, **names, at=at, kind=kind, bias=bias)
    if layers:
        replace_nodes(model, written)
    return _SHORT_TOKENS if layers else 0


def _rows(graph: onnx.GraphProto) -> int:
    """Of a block, by the widest window of all layers."""
    widest = max(
        sum(each.i for each in node.attribute if each.name in ("before", "after"))
        for node in graph.node
        if (node.domain, node.op_type) == (DOMAIN, NEARBY)
    )
    return _ROWS_OF_WINDOWS if widest <= _NARROW else _ROWS
