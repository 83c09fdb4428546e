"""Attention without a mask, over packed rows (`prefkd.data.packing`): torch's own variable-length flash attention.

The kernel runs on GPUs only. On a CPU a plain stand-in of the same signature takes its place, so that everything around
the kernel is the same code there. Under fake tensors the kernel's own outline answers.
"""

import inspect
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from transformers import PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from prefkd.data.packing import Packing, pack
from prefkd.errors import first_line

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # torch 2.9
    varlen_attn: Any = None

Attention = Literal["auto", "mask", "varlen"]
NAME = "prefkd_varlen"
# Older versions take grouped heads unasked.
ASKS_FOR_GROUPS = varlen_attn is not None and "enable_gqa" in inspect.signature(varlen_attn).parameters
# Most that the kernel may be off by a float32 result, of values around 1 in bfloat16, in which a unit is 2**-8.
TOLERANCE = 0.05


def tries_varlen(attention: Attention, device: torch.device) -> bool:
    """Whether a model is to attend without a mask, if it can."""
    return attention == "varlen" or (attention == "auto" and device.type == "cuda")


def varlen_obstacle(lm: PreTrainedModel, precision: torch.dtype, device: torch.device) -> str | None:
    """Why a model cannot do without a mask, in a few words; None if it can.

    Args:
        precision: What its layers compute in.
        device: Where.
    """
    text: Any = lm.config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if kinds:
        return f"{text.model_type} has layers of {', '.join(sorted(kinds))}"
    if not lm._supports_attention_backend or text._attn_implementation not in ("sdpa", NAME):
        return f"{text.model_type} has an attention of its own"
    if getattr(text, "attn_logit_softcapping", None) is not None:
        return f"{text.model_type} caps its attention scores"
    if device.type == "cuda" and varlen_attn is None:
        return f"torch {torch.__version__} has no such kernel"
    if device.type == "cuda" and precision == torch.float32:
        return "the kernel has no float32"
    return None


def use_varlen(lm: PreTrainedModel) -> None:
    """Let a model attend by `varlen_attention` where it is given a packing, and as before where it is not."""
    ALL_ATTENTION_FUNCTIONS.register(NAME, varlen_attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, sdpa_mask)
    lm.config._attn_implementation = NAME


def varlen_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    packing: Packing | None = None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """An attention of transformers: queries (1, H, T, D), keys and values (1, H_kv, T, D) -> (1, T, H, D).

    Args:
        sliding_window: Positions that a token sees, itself among them; None is all before it.
        packing: What each token sees. Without it, `attention_mask` says so, as for sdpa.

    Raises:
        ValueError: The model's attention has something that the kernel does not know.
    """
    if packing is None:
        return ALL_ATTENTION_FUNCTIONS["sdpa"](
            module, query, key, value, attention_mask, scaling=scaling, sliding_window=sliding_window, **settings
        )
    unknown = [name for name in ("softcap", "s_aux", "position_bias") if settings.get(name) is not None]
    if unknown:
        raise ValueError(f"this attention has {', '.join(unknown)}")
    # Rotary embeddings may have left queries and keys in float32.
    rows = [states[0].transpose(0, 1).to(value.dtype) for states in (query, key, value)]
    if packing.keys is not None:
        rows[1:] = [states.index_select(0, packing.keys) for states in rows[1:]]
    window = -1 if sliding_window is None else sliding_window - 1
    return _attend(*rows, packing=packing, scale=scaling, window=window)[None], None


def _attend(query: Tensor, key: Tensor, value: Tensor, *, packing: Packing, scale: float | None, window: int) -> Tensor:
    kernel, grouped = varlen_on_cpu, {"enable_gqa": True}  # a group may be a single head
    if query.is_cuda or isinstance(query, FakeTensor):
        kernel, grouped = varlen_attn, grouped if ASKS_FOR_GROUPS else {}
    return kernel(
        query,
        key,
        value,
        packing.query_starts,
        packing.key_starts,
        packing.longest_query,
        packing.longest_keys,
        scale=scale,
        window_size=(window, 0),
        **grouped,
    )


def varlen_on_cpu(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, 0),
    enable_gqa: bool = False,
) -> Tensor:
    """`torch.nn.attention.varlen.varlen_attn` in plain torch, under the mask that it implies: (T, H, D)."""
    query_at, key_at = torch.arange(len(query)), torch.arange(len(key))
    query_segment, key_segment = (
        torch.bucketize(at, starts[1:], right=True) for at, starts in ((query_at, cu_seq_q), (key_at, cu_seq_k))
    )
    # Both are counted from the end of their segment: the last query sees the last key.
    distance = (cu_seq_k[1:][key_segment] - key_at) - (cu_seq_q[1:][query_segment] - query_at)[:, None]
    mask = (query_segment[:, None] == key_segment) & (distance >= 0)
    if window_size[0] >= 0:
        mask &= distance <= window_size[0]
    heads = (states.transpose(0, 1)[None] for states in (query, key, value))
    out = F.scaled_dot_product_attention(*heads, attn_mask=mask, scale=scale, enable_gqa=enable_gqa)
    return out[0].transpose(0, 1)


@torch.enable_grad()
def kernel_fault(lm: PreTrainedModel, dtype: torch.dtype, device: torch.device) -> str | None:
    """Why the kernel cannot be used on a device for the heads of a model, found by using it; None if it can.

    Three segments with shared keys, a window, forward and backward: compared with the stand-in in float32.
    """
    text: Any = lm.config.get_text_config()
    heads = text.num_attention_heads
    grouped = getattr(text, "num_key_value_heads", None) or heads
    size = getattr(text, "head_dim", None) or text.hidden_size // heads
    generator = torch.Generator().manual_seed(0)
    states = [torch.randn(18, count, size, generator=generator) for count in (heads, grouped, grouped)]
    packing = pack([(3, 2, 4), (1, 7, 1)], 9, torch.zeros(1, dtype=torch.long))
    results = []
    try:
        for place, kind in ((device, dtype), (torch.device("cpu"), torch.float32)):
            own = [part.to(place, kind).requires_grad_() for part in states]
            query, key, value = (states.transpose(0, 1)[None] for states in own)
            for window in (None, 3):
                out, _ = varlen_attention(lm, query, key, value, None, sliding_window=window, packing=packing.to(place))
                results += [out, *torch.autograd.grad(out.float().square().sum(), own)]
    except Exception as error:  # whatever a kernel raises
        return f"fails here ({type(error).__name__}: {first_line(error)})"
    half = len(results) // 2
    off = [
        ((one.cpu().float() - other).abs().max() / other.abs().max()).item()
        for one, other in zip(results[:half], results[half:], strict=True)
    ]
    if not max(off) <= TOLERANCE:
        return f"differs from plain attention by {max(off):.2g} of its largest value"
    return None
