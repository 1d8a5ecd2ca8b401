"""FLOPs by the closed formulas of the paper's cost analysis; a multiply-add is two, biases and norms are not counted.

Symbols: d decoder layers of width h, L text tokens, n visual tokens (or memory slots), r and k width and blocks of the
fuser. Source: DEHVF, computational cost analysis and appendix A, whose terms are written out in docs/flops.md.
"""

from __future__ import annotations


def attention(tokens: int, h: int) -> int:
    """Multi-head attention of one layer: 8 L h^2 for the four projections, 4 L^2 h for scores and mix."""
    return 8 * tokens * h**2 + 4 * tokens**2 * h


def feed_forward(tokens: int, h: int, width: int | None = None, matrices: int = 2) -> int:
    """Feed-forward network of one layer: 16 L h^2 with two matrices of width 4 h; LLaMA has three of another width."""
    return 2 * tokens * matrices * h * (4 * h if width is None else width)


def decoder(tokens: int, h: int, d: int, width: int | None = None, matrices: int = 2) -> int:
    """A decoder without its head: d (24 L h^2 + 4 L^2 h) in the paper's form."""
    return d * (attention(tokens, h) + feed_forward(tokens, h, width, matrices))


def layer_queries(d: int, embedding: int = 64, hidden: int = 128, output: int = 64) -> int:
    """The input embedding network on 2 d queries: 2 d (2 (128 * 128 + 128 * 64)), once per step."""
    return 2 * d * 2 * (2 * embedding * hidden + hidden * output)


def fuser(d: int, r: int, k: int, groups: int, members: int, vision_hidden: int) -> int:
    """Weights of 2 d queries, per image: about 40 k d r^2, and what members add.

    A block: query and output projection (4 r^2) and feed-forward network (16 r^2) of each query, keys and values (4 r^2) of
    each member, attention 4 r per pair. Then once: members to width r, and a score per pair.
    """
    queries, places = 2 * d, groups * members
    block = queries * (20 * r**2 + 4 * r * members) + places * 4 * r**2
    return k * block + 2 * places * vision_hidden * r + 2 * queries * members * r


def memory(tokens: int, n: int, h: int, d: int) -> int:
    """What n more slots in every feed-forward network cost: 4 n L h d, linear in n."""
    return 4 * n * tokens * h * d


def projection(vision_layers: int, patches: int, vision_hidden: int, code: int, h: int, d: int) -> int:
    """What the paper does not count: the projector's first layer on every vision layer, mixing the codes, its second layer."""
    first = 2 * vision_layers * patches * vision_hidden * code
    mix = 2 * 2 * d * vision_layers * patches * code
    second = 2 * d * 2 * patches * code * h
    return first + mix + second
