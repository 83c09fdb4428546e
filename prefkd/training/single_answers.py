"""Training on answers without a rival (`data.format: answers`): what can be learned of them, and what is logged."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from prefkd.data.batches import PairBatch
from prefkd.training.objective import Objective

ELSE = "rank the answers with recipe rank first, or use dskd_distill with terms such as shared_tokens and alm, or sft"


def single_answer_problems(config: Any, objective: Objective | None = None) -> Iterator[str]:
    """Why a recipe cannot learn from answers without a rival, if its data are such.

    Args:
        config: A recipe's config with `data`.
        objective: Its terms; None for a recipe that compares two answers whatever the config says.
    """
    if config.data.has_rivals:
        return
    if objective is None:
        yield f"data.format: answers have no rival, and this recipe compares two; {ELSE}"
        return
    for term in objective.terms:
        if term.unit == "pair":
            yield f"objective: {term.name} compares two answers, and with data.format: answers there is one; remove it"
        elif 1 in term.sides:
            yield f"objective: {term.name} is about rejected answers, and format: answers has none; use answers: chosen"


def logged_logprobs(policy: Tensor, batch: PairBatch) -> dict[str, Tensor]:
    """What is logged of the log-probs of answers, (B,) each; of answers without a rival `chosen_logprob` alone.

    Args:
        policy: (2, B, P) log-prob of each parent under the model that is trained.
    """
    chosen, rejected = policy.detach().sum(-1)
    if not batch.has_rivals:
        return {"chosen_logprob": chosen}
    return {
        "logprob_accuracy": (chosen > rejected).float(),
        "chosen_logprob": chosen,
        "rejected_logprob": rejected,
    }
