"""A preference loss of your own for the recipes dpo and dpo_distill: a hinge on the log-ratio margin.

Next to this file, name it in place of the config's loss and run the recipe:

    prefkd run dpo --config demo/dpo loss._component_=own_loss.hinge loss.beta=0.1
"""

from torch import Tensor


def hinge(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    beta: float = 0.1,
) -> tuple[Tensor, Tensor, Tensor]:
    """max(0, 1 - beta h) on the DPO margin h, and the rewards of both answers, (B,) each."""
    chosen_rewards = beta * (policy_chosen - reference_chosen)
    rejected_rewards = beta * (policy_rejected - reference_rejected)
    losses = (1 - (chosen_rewards - rejected_rewards)).clamp_min(0)
    return losses, chosen_rewards.detach(), rejected_rewards.detach()
