"""A pass of inductor: it turns a product that is added to a matrix from `addmm` into a
product and a sum.

Inductor writes `addmm` out of place: its kernel needs a copy of the matrix, which is
one more pass to read and one to write it. A separate sum becomes a part of the next
elementwise kernel (norm, rotation, GELU, gate), at the cost of reading the product. An
adapter has such a product in each layer, forward, recomputed and backward, and so does
every gradient that comes from several layers.

`compiling` sets the pass. Blocks that are not compiled keep `addmm`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files

_aten = torch.ops.aten


class UnfusedSums(CustomGraphPass):
    """Set as `torch._inductor.config.post_grad_custom_post_pass`, after the patterns
    that make `addmm` of sums.

    A bias stays in its product, because `addmm` does not copy a bias.

    Example::

        torch._inductor.config.post_grad_custom_post_pass = UnfusedSums()
    """

    def __call__(self, graph: fx.Graph) -> None:
        for node in graph.find_nodes(op="call_function", target=_aten.addmm.default):
            addend, *factors = node.args
            if addend.meta["val"].shape == node.meta["val"].shape:
                _take_apart(graph, node, addend, factors)

    def uuid(self) -> Any:
        """The key of this pass in caches of compiled programs."""
        return get_hash_for_files((__file__,))


def _take_apart(
    graph: fx.Graph, node: fx.Node, addend: fx.Node, factors: list[fx.Node]
) -> None:
    with graph.inserting_before(node):
        product = graph.call_function(_aten.mm.default, tuple(factors))
        beta = node.kwargs.get("beta", 1)
        if beta != 1:
            addend = graph.call_function(_aten.mul.Tensor, (addend, beta))
        total = graph.call_function(
            _aten.add.Tensor, (addend, product), {"alpha": node.kwargs.get("alpha", 1)}
        )
    for new_node in (product, addend, total):
        new_node.meta.setdefault("val", node.meta["val"])
    node.replace_all_uses_with(total)
    graph.erase_node(node)
