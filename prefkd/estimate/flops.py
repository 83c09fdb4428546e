"""Arithmetic of work: floating-point operations of a pass, a product of (n, k) and (k, m) counting as 2 n k m.

N weights of all layers without embeddings and head, T tokens of all rows, S tokens of a row, L layers, D = heads x head
size, V vocabulary, H hidden size. As is usual, norms, softmax and the like are left out; and so are a term's own
products in an objective.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Pass:
    """What a model reads in one optimizer step, over all ranks.

    Attributes:
        weights: N.
        tokens: T, padding included.
        row: S.
        targets: Tokens whose log-probs are wanted.
        layers: L.
        width: D.
        head: V x H.
    """

    weights: int
    tokens: int
    row: int
    targets: int
    layers: int
    width: int
    head: int


def layer_flops(read: Pass) -> float:
    """Forward through the layers: 2 N T for the products with weights."""
    return 2 * read.weights * read.tokens


def attention_flops(read: Pass) -> float:
    """Forward through the attention: Q K' and its product with V, 2 S D each for a token and a layer."""
    return 4 * read.layers * read.tokens * read.row * read.width


def head_flops(read: Pass) -> float:
    """Forward through the head, which reads the targets only: 2 V H each."""
    return 2 * read.head * read.targets


def forward_flops(read: Pass) -> float:
    """A pass without gradients: 2 N T, attention and head."""
    return layer_flops(read) + attention_flops(read) + head_flops(read)


def training_flops(read: Pass, *, trained: int, recomputed: bool) -> float:
    """Forward and backward: 6 N T where all weights learn, and three times attention and head.

    Backward goes through every weight to the inputs, 2 N T, and to the gradients of those that learn, 2 N_trained T.

    Args:
        trained: N_trained, weights of the layers that learn: with LoRA those of the adapters, which are part of N.
        recomputed: Whether backward runs the layers once more.
    """
    backward = layer_flops(read) + 2 * trained * read.tokens + 2 * (attention_flops(read) + head_flops(read))
    again = layer_flops(read) + attention_flops(read) if recomputed else 0.0
    return forward_flops(read) + backward + again
