"""A term of your own in the objective of dskd_distill: a penalty on a student that is too sure of its words.

Next to this file, name it in a config and run the recipe:

    prefkd run dskd_distill --config demo/dskd_distill \
        "objective=[{_component_: prefkd.training.terms.tis_dpo}, {_component_: own_term.entropy, weight: 0.1}]"
"""

from torch import Tensor

from prefkd.training.signals import Signals, term


@term(unit="token")
def entropy(signals: Signals, floor: float = 1.0) -> Tensor:
    """How far the entropy of the student's next token falls below `floor` nats, (B,)."""
    values = []
    for answer in signals.student_answers():
        logprobs = answer.logits().log_softmax(-1)
        values.append((floor + (logprobs.exp() * logprobs).sum(-1)).clamp_min(0).sum())
    return signals.pair_sums(values)
