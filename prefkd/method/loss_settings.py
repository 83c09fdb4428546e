"""What goes with a preference loss: weights and running means."""

import torch
from torch import Tensor

from prefkd.method.logprobs import predicting_logits


def running_mean(mean: float, count: int, value: float) -> tuple[float, int]:
    """The mean over steps, each of which counts alike, after one more: ``mean + (value - mean) / (count + 1)``."""
    return mean + (value - mean) / (count + 1), count + 1


def offset_per_parent(
    chosen_ratio: Tensor, rejected_ratio: Tensor, chosen_length: Tensor, rejected_length: Tensor
) -> Tensor:
    """``kappa``, the mean log-ratio of a parent: the mean over pairs of (a + b) / (n_w + n_l), if n_w + n_l > 0.

    Args:
        chosen_ratio: (B,) log-ratio a of the chosen answer.
        rejected_ratio: (B,) log-ratio b of the rejected answer.
        chosen_length: (B,) parents n_w of the chosen answer, or the sum of their weights.
        rejected_length: (B,) the same n_l of the rejected answer.

    Returns:
        A scalar; NaN if no pair has a length.
    """
    lengths = chosen_length + rejected_length
    has_length = lengths > 0  # all parents of a pair may weigh 0
    return ((chosen_ratio + rejected_ratio)[has_length] / lengths[has_length]).mean()


def centred(policy: Tensor, lengths: Tensor, kappa: Tensor | float) -> Tensor:
    """``a - kappa n``: log-probs or log-ratios without the offset that each parent has.

    So a loss that sees both log-ratios apart can have a teacher as its reference.
    """
    return policy - kappa * lengths


def long_answer_weights(mask: Tensor, alpha: float, dtype: torch.dtype = torch.float32) -> Tensor:
    """LD-DPO (arXiv 2409.06411): the part of an answer beyond the length of the other counts alpha.

    Args:
        mask: (2, B, P) true at real parents (or tokens), which come first. Of the axis of length 2, 0 is the chosen
            answer. Policy and reference are cut at the same parent, so that both are cut at the same text.
        alpha: Weight beyond the shorter answer's length, in [0, 1]; 1 is DPO.
        dtype: Type of the weights.

    Returns:
        (2, B, P) weights; 0 where there is no parent.

    Raises:
        ValueError: `alpha` is outside [0, 1].
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}, but must be between 0 and 1")
    shorter = mask.sum(-1).amin(0)  # (B,)
    beyond = torch.arange(mask.shape[-1], device=mask.device) >= shorter[:, None]
    weights = mask.to(dtype)
    return torch.where(beyond, alpha * weights, weights)


def wpo_weights(logits: Tensor, labels: Tensor) -> Tensor:
    """WPO (arXiv 2406.11827): the weight of a response, larger if the policy would write it itself.

    ``w = exp(mean over t of (log pi(y_t) - log sum_v pi(v)^2))``; the weight of a pair is the product of both.

    Args:
        logits: (B, S, V) of the policy.
        labels: (B, S), unshifted, -100 where there is no target.

    Returns:
        (B,) weights without gradient, above 1 where tokens are more likely than the expected one; 1 without a target.
    """
    with torch.no_grad():
        kept, targets, mask = predicting_logits(logits, labels)
        logprobs = kept.log_softmax(-1)
        found = logprobs.gather(-1, targets[:, None])[:, 0] - torch.logsumexp(2 * logprobs, -1)
        sums = found.new_zeros(labels.shape).masked_scatter(mask, found).sum(-1)
        return (sums / mask.sum(-1).clamp_min(1)).exp()


def refreshed_reference(reference: Tensor, policy: Tensor, alpha: float) -> Tensor:
    """TR-DPO (arXiv 2404.09656): a weight of the new reference, ``alpha theta + (1 - alpha) theta_ref``.

    Args:
        reference: A weight of the reference, of any shape.
        policy: Its counterpart in the policy, of equal shape.
        alpha: Share of the policy; 1 is a copy of it.
    """
    return alpha * policy + (1 - alpha) * reference


def update_gap(mean: float, std: float, gaps: Tensor, momentum: float = 0.9) -> tuple[float, float]:
    """beta-DPO (arXiv 2407.08639): running mean M and deviation S of h after a batch of h, (B,); both begin at 0."""
    batch_std = gaps.std().item() if len(gaps) > 1 else 0.0
    return momentum * mean + (1 - momentum) * gaps.mean().item(), momentum * std + (1 - momentum) * batch_std


def gap_weights(gaps: Tensor, mean: float, std: float) -> Tensor:
    """beta-DPO: the (B,) weights with which pairs are drawn, ``exp(-1/2 ((h - M) / S)^2)``, largest near the mean.

    Weights are at least the smallest normal number, since drawing without replacement needs enough that are not 0. A
    deviation below 1e-3 nats, as that of a policy which is still its reference, is rounding and counts as 1e-3.
    """
    weights = torch.exp(-0.5 * ((gaps - mean) / max(std, 1e-3)) ** 2)
    return weights.clamp(min=torch.finfo(weights.dtype).tiny)


def dynamic_beta(beta: float, gaps: Tensor, mean: float, sensitivity: float = 0.6) -> float:
    """beta-DPO: the beta of a batch, ``max(1e-3, beta (1 + a (mean of the drawn h - M)))``."""
    return max(1e-3, beta * (1 + sensitivity * (gaps.mean().item() - mean)))
