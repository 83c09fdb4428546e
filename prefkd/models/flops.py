"""Arithmetic of work: floating-point operations of a pass, a product of (n, k) and (k, m) counting as 2 n k m.

N weights of all layers without embeddings and head, T tokens, A keys that queries attend to, summed over tokens and
layers, D = heads x head size, V vocabulary, H hidden size. As is usual, norms, softmax and the like are left out, and a
term's own products in an objective. What a mask hides is not counted, though a kernel may compute it.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from prefkd.models.load import sliding_window


@dataclass(frozen=True)
class Pass:
    """What a model reads in one optimizer step, over all ranks.

    Attributes:
        weights: N.
        tokens: T.
        attended: A.
        targets: Tokens whose log-probs are wanted.
        width: D.
        head: V x H.
    """

    weights: int
    tokens: int
    attended: int
    targets: int
    width: int
    head: int


def layer_flops(read: Pass) -> float:
    """Forward through the layers: 2 N T for the products with weights."""
    return 2 * read.weights * read.tokens


def attention_flops(read: Pass) -> float:
    """Forward through the attention: Q K' and its product with V, 2 D each for a query and a key."""
    return 4 * read.attended * read.width


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


def reading(lm: PreTrainedModel, *, tokens: int, attended: int, targets: int) -> Pass:
    """What a model does when it reads so much.

    Args:
        attended: A.
    """
    text: Any = lm.config.get_text_config()
    heads = text.num_attention_heads
    head_size = getattr(text, "head_dim", None) or text.hidden_size // heads
    weights = sum(parameter.numel() for parameter in lm.parameters()) - outer_weights(lm)
    head = text.vocab_size * text.hidden_size
    return Pass(weights, tokens, attended, targets, width=heads * head_size, head=head)


def keys_attended(lm: PreTrainedModel, positions: Tensor) -> Tensor:
    """A of tokens at some positions of their texts: all before them and themselves, or those in the layer's window."""
    kinds = getattr(lm.config.get_text_config(), "layer_types", None)
    window, layers = sliding_window(lm), lm.config.get_text_config().num_hidden_layers
    sliding = layers if kinds is None else sum(kind == "sliding_attention" for kind in kinds)
    if window is None:
        sliding = 0
    keys = positions + 1
    return (layers - sliding) * keys.sum() + (sliding * keys.clamp(max=window).sum() if sliding else 0)


def outer_weights(lm: PreTrainedModel, *, trained: bool | None = None) -> int:
    """Parameters of embeddings and head, once where they are tied: all, or those that learn, or those that do not."""
    ends: list[Any] = [lm.get_input_embeddings(), lm.get_output_embeddings()]
    weights = {id(module.weight): module.weight for module in ends}
    return sum(value.numel() for value in weights.values() if trained in (None, value.requires_grad))
