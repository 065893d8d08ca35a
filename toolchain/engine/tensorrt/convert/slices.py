"""Which rows or columns of a matrix a rank has. Arithmetic only: no tensors."""

from __future__ import annotations

from toolchain.model.spec import ModelSpec


def block(count: int, parts: int, part: int) -> slice:
    """Part `part` of `count` things in `parts` equal runs; `parts` divides `count`."""
    size = count // parts
    return slice(part * size, (part + 1) * size)


def kv_heads(heads: int, parts: int, part: int) -> slice:
    """The key-value heads of a rank: a run of them, or where there are fewer than ranks, one.

    Then each head is on `parts / heads` neighbouring ranks.
    """
    if heads >= parts:
        return block(heads, parts, part)
    head = part * heads // parts
    return slice(head, head + 1)


def attention_rows(spec: ModelSpec, projection: str, parts: int, part: int) -> slice:
    """The output channels of q_proj, k_proj or v_proj that a rank has."""
    if projection == "self_attn.q_proj":
        own = block(spec.num_attention_heads, parts, part)
    else:
        own = kv_heads(spec.num_key_value_heads, parts, part)
    return slice(own.start * spec.head_dim, own.stop * spec.head_dim)


def padded(count: int, parts: int) -> int:
    """`count` rounded up to a multiple of `parts`: the rows of a vocabulary's table when it is split."""
    return -(-count // parts) * parts


def vocabulary_rows(count: int, parts: int, part: int) -> slice:
    """The rows of a table of `count` tokens that a rank has; the last ranks may have fewer, even none.

    What is missing to the `padded(count, parts) / parts` rows of a rank is zeros.
    """
    own = block(padded(count, parts), parts, part)
    return slice(min(own.start, count), min(own.stop, count))


def width(part: slice) -> int:
    """How many it selects."""
    return int(part.stop) - int(part.start)
