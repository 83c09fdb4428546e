"""Which positions attend to which when a row holds a prompt and both of its answers."""

import torch
from torch import Tensor

from prefkd.data.batches import Segment, TokenBatch


def shared_prompt_mask(tokens: TokenBatch, window: int | None = None) -> Tensor:
    """Which positions a position may attend to, so that both answers of a row see the prompt but not each other.

    Args:
        tokens: A batch whose rows hold prompt, chosen and rejected answer.
        window: Sliding window of the attention in positions, None for full attention.

    Returns:
        (R, 1, S, S) bool, True = may attend. Padding attends to itself alone, so that no softmax is empty.

    Source: prefix sharing for DPO, arXiv 2410.20305.
    """
    query, key = tokens.segments[:, :, None], tokens.segments[:, None, :]
    order = torch.arange(tokens.segments.shape[1], device=tokens.segments.device)
    allowed = (order[:, None] >= order[None, :]) & ((key == Segment.PROMPT) | (key == query))
    if window is not None:
        distance = tokens.position_ids[:, :, None] - tokens.position_ids[:, None, :]
        allowed &= distance < window
    allowed &= (query != Segment.PADDING) | (order[:, None] == order[None, :])
    return allowed[:, None]
