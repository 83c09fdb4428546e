"""What the terms of an objective are computed from, and how a term says which of it it needs."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from prefkd.data.places import Places, find_places
from prefkd.data.vocabulary import Vocabularies
from prefkd.method.dual_space import DualSpaceProjectors
from prefkd.method.dual_space_v2 import ExactProjectors
from prefkd.models.logprob_model import TokenStates

Unit = Literal["pair", "token", "parent"]
Answers = Literal["chosen", "rejected", "both"]
Need = Literal[
    "reference",
    "weights",
    "margin",
    "teacher_logprobs",
    "teacher_states",
    "positive_states",
    "negative_states",
    "projectors",
    "exact_projectors",
    "vocabularies",
    "one_vocabulary",
]
# What has to be there for something else to be.
IMPLIED: dict[Need, tuple[Need, ...]] = {
    "weights": ("reference",),
    "projectors": ("teacher_states",),
    "exact_projectors": ("teacher_states", "vocabularies"),
    "one_vocabulary": ("teacher_states",),
}
# An objective has one kind of these, whose warm-up trains nothing else.
PROJECTORS: frozenset[Need] = frozenset(["projectors", "exact_projectors"])
# What a term returns: a value for each pair, (B,), and what is logged besides; a sum over another unit says which.
Losses = Tensor | tuple[Tensor, Mapping[str, Tensor | tuple[Tensor, Unit]]]
Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class Signals:
    """What the models say of a microbatch. What no term needs is None.

    B pairs, P parents of the longest answer, N targets of the student. Of the axis of length 2, 0 is the chosen answer
    and 1 the rejected one.

    Attributes:
        policy: (2, B, P) log-prob of each parent under the student. It carries gradient, as do the student's states;
            all else is constant, but for the projectors.
        parent_mask: (2, B, P) true for the parents that exist; elsewhere all values are 0.
        student: The student's states at its N targets: the B chosen answers, then the B rejected ones.
        reference: (2, B, P) log-prob under the model that the student is compared with.
        weights: (2, B, P) importance weights.
        pair_weight: (B,) weight of each pair, by which the objective multiplies terms that compare both answers, and
            of answers without a rival all terms.
        margin: (B,) by how much, in units of the reward, the chosen answer must win.
        teacher_logprobs: (2, B, P) log-prob under the teacher, whatever the reference is.
        teacher: The teacher's states at its own targets, in the same order of answers.
        positive, negative: The states of pi+ and pi- at the teacher's targets, in the same order of answers.
        projectors: Projectors between the hidden states of both models.
        vocabularies: The tokens of both models.
        places: Where student and teacher predict what follows the same text; None = to be found.
        sides: The answers that a term counted in tokens or parents is about: (0,), (1,) or (0, 1).
        only_projectors: Whether this step trains the projectors alone.
    """

    policy: Tensor
    parent_mask: Tensor
    student: TokenStates
    reference: Tensor | None = None
    weights: Tensor | None = None
    pair_weight: Tensor | float = 1.0
    margin: Tensor | float = 0.0
    teacher_logprobs: Tensor | None = None
    teacher: TokenStates | None = None
    positive: TokenStates | None = None
    negative: TokenStates | None = None
    projectors: DualSpaceProjectors | ExactProjectors | None = None
    vocabularies: Vocabularies | None = None
    places: Places | None = None
    sides: tuple[int, ...] = (0,)
    only_projectors: bool = False

    def student_answers(self) -> list[TokenStates]:
        """What the student says of each answer that the term is about: B times one or two of them."""
        return self._asked_about(self.student.answers())

    def answers(self) -> list[tuple[TokenStates, TokenStates]]:
        """What student and teacher say of each of these."""
        return [(student, teacher) for student, teacher in self.answers_of(self.teacher)]

    def answers_of(self, *models: TokenStates | None) -> list[tuple[TokenStates, ...]]:
        """What the student and then other models say of each of these."""
        return list(zip(self.student_answers(), *(self.of_model(model) for model in models), strict=True))

    def of_model(self, model: TokenStates | None) -> list[TokenStates]:
        """What a model says of each of these."""
        assert model is not None, "a term that reads the states of a model says so"
        return self._asked_about(model.answers())

    def of_sides(self, *sides: int) -> "Signals":
        """The same for a part of a term that is about some answers: 0 for the chosen, 1 for the rejected ones."""
        return replace(self, sides=sides)

    def joined(self, model: TokenStates) -> TokenStates:
        """What a model says of all of these together; the sides are those of a term, chosen before rejected."""
        first, last = self._range
        start, end = sum(model.lengths[:first]), sum(model.lengths[:last])
        return replace(model.part(start, end), lengths=model.lengths[first:last])

    def places_of(self, model: TokenStates) -> Places:
        """Where the student and a model of the teacher's vocabulary predict what follows the same text, of these."""
        one = self.vocabularies is not None and self.vocabularies.are_one
        found = find_places(self.student, model, one_vocabulary=one) if self.places is None else self.places
        return found.of_answers(*self._range)

    def answer_sums(self, values: Tensor, lengths: Sequence[int]) -> Tensor:
        """From (..., M) values, so many of each of `answers`, to (..., A) sums."""
        return torch.stack([part.sum(-1) for part in values.split(list(lengths), -1)], -1)

    @property
    def _range(self) -> tuple[int, int]:
        """The first of `answers` and the one behind the last, among all of the batch."""
        pairs = self.policy.shape[1]
        return self.sides[0] * pairs, (self.sides[-1] + 1) * pairs

    def pair_sums(self, values: Sequence[Tensor] | Tensor) -> Tensor:
        """From a scalar for each of `answers`, (A,), to (B,), the sum over the answers of a pair."""
        joined = values if isinstance(values, Tensor) else torch.stack(list(values))
        return joined.view(len(self.sides), -1).sum(0)

    def parent_sums(self, values: Tensor) -> Tensor:
        """From (2, B, P) values of parents to (B,), the sum over the parents that the term is about."""
        return (values * self.parent_mask)[self.sides[0] : self.sides[-1] + 1].sum((0, 2))

    def _asked_about(self, answers: list[TokenStates]) -> list[TokenStates]:
        pairs = self.policy.shape[1]
        return [answer for side in self.sides for answer in answers[side * pairs : (side + 1) * pairs]]


def term(
    *, needs: Collection[Need] = (), unit: Unit = "pair", answers: Answers = "chosen", cached: bool = False
) -> Callable[[Function], Function]:
    """Mark a function as a term of an objective.

    Args:
        needs: Fields of `Signals` that it reads besides the student and the mask. `one_vocabulary` is a demand: both
            models must have the same tokens. `margin` says that it asks for one.
        unit: The unit that its values are sums over: they are divided by the pairs, by the student's target tokens or
            by the parents of the whole step.
        cached: Whether kept distributions can take the place of a model's states.
        answers: The answers that it is about unless a config says otherwise, if it is counted in tokens or parents.
    """

    def mark(function: Function) -> Function:
        function.needs, function.unit = with_implied(needs), unit  # pyright: ignore[reportFunctionMemberAccess]
        function.cached = cached  # pyright: ignore[reportFunctionMemberAccess]
        function.answers = answers  # pyright: ignore[reportFunctionMemberAccess]
        return function

    return mark


def with_implied(needs: Collection[Need]) -> frozenset[Need]:
    """Some needs, and what they imply."""
    return frozenset(needs).union(*(IMPLIED.get(need, ()) for need in needs))
