"""Terms across tokenizers: once more from whole logits, parent by parent, and what is logged."""

from dataclasses import fields, replace

import pytest
import torch
import torch.nn.functional as F

from prefkd.data.batches import StepCounts
from prefkd.data.vocabulary import Vocabularies
from prefkd.method.divergences import DIVERGENCES
from prefkd.method.shared_tokens import common_pairs
from prefkd.method.top_rows import rows_of
from prefkd.models.logprob_model import TokenStates
from prefkd.models.top_states import TopStates
from prefkd.training import terms as terms
from prefkd.training.objective import Objective
from prefkd.training.shared_token_terms import SURE, token_counts
from prefkd.training.signals import Signals
from tests.tiny import make_tokenizer

TOKENIZERS = make_tokenizer("metaspace"), make_tokenizer("byte_level")
ENDS = TOKENIZERS[0].eos_token_id, TOKENIZERS[1].eos_token_id
VOCABULARIES = Vocabularies.of(*TOKENIZERS, ENDS)
PADDING = 3  # rows of the heads that are not tokens
# The parents of each target of the answers: two chosen ones, then two rejected ones.
STUDENT = ((0, 1, 1, 2), (0, 1), (0, 0, 1), (0, 1, 2, 2))
TEACHER = ((0, 1, 2, 2), (0, 0, 1), (0, 1), (0, 0, 1, 1, 2))
ALONE = ((0, 0), (1, 2))  # the one target of a parent alone on both sides, of each chosen answer


def states(parents, vocabulary: int, hidden: int, seed: int) -> TokenStates:
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    count = sum(map(len, parents))
    ids = torch.randint(vocabulary, (2, count), generator=generator)
    return TokenStates(
        inputs=ids[0],
        targets=ids[1],
        parents=torch.cat([torch.tensor(answer) + 10 * index for index, answer in enumerate(parents)]),
        hidden=draw(count, hidden).requires_grad_(),
        embedding=draw(vocabulary + PADDING, hidden),
        head=draw(vocabulary + PADDING, hidden).requires_grad_(),
        lengths=tuple(map(len, parents)),
        chunk_size=1,
    )


@pytest.fixture
def signals() -> Signals:
    return Signals(
        policy=-torch.ones(2, 2, 3, dtype=torch.float64),
        parent_mask=torch.tensor([[[1, 1, 1], [1, 1, 0]], [[1, 1, 0], [1, 1, 1]]]).bool(),
        student=states(STUDENT, len(TOKENIZERS[0]), 4, seed=1),
        teacher=states(TEACHER, len(TOKENIZERS[1]), 6, seed=2),
        vocabularies=VOCABULARIES,
    )


def alone(signals: Signals, pair: int, *, extra: int = PADDING) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits at the one place of a chosen answer where a parent is one token on each side."""
    student, teacher = signals.student.answers()[pair], signals.teacher.answers()[pair]
    own, other = ALONE[pair]
    cut = None if extra == PADDING else -PADDING
    return student.logits()[own, :cut], teacher.logits()[other, :cut].detach()


def shared_probabilities(signals: Signals, pair: int, **how) -> tuple[torch.Tensor, torch.Tensor]:
    sides = zip(alone(signals, pair, **how), VOCABULARIES.shared, strict=True)
    return tuple(logits.softmax(-1)[ids] for logits, ids in sides)


def test_shared_tokens_of_the_tiny_tokenizers_have_the_same_text():
    own, other = VOCABULARIES.shared
    assert len(own) > 50
    pairs = set(zip(own.tolist(), other.tolist(), strict=True))
    assert ENDS in pairs
    assert all(VOCABULARIES.student[a] == VOCABULARIES.teacher[b] for a, b in pairs - {ENDS})


def test_the_lumped_divergence_of_each_pair(signals):
    values, logged = terms.shared_tokens(signals)
    for pair in (0, 1):
        p, q = shared_probabilities(signals, pair)
        rest = (1 - q.sum()) * ((1 - q.sum()) / (1 - p.sum())).log()
        torch.testing.assert_close(values[pair], (q * (q / p).log()).sum() + rest)
        for name, mass in zip(("student", "teacher"), (p, q), strict=True):
            torch.testing.assert_close(logged[f"{name}_shared_mass"][0][pair], mass.sum().detach())


def test_the_renormalised_divergence_of_each_pair(signals):
    values, _ = terms.shared_tokens(signals, form="renormalised", divergence="reverse_kl")
    for pair in (0, 1):
        p, q = (mass / mass.sum() for mass in shared_probabilities(signals, pair))
        torch.testing.assert_close(values[pair], (p * (p / q).log()).sum())


def test_places_where_no_kept_token_is_shared_count_as_0(signals):
    teacher, shared = signals.teacher, VOCABULARIES.shared.teacher
    unshared = torch.tensor([id for id in range(len(TOKENIZERS[1])) if id not in set(shared.tolist())])
    ids = shared[:4].repeat(len(teacher.targets), 1)
    ids[ALONE[0][1]] = unshared[:4]  # at the one place of the first pair
    rows = rows_of(teacher.logits().detach().log_softmax(-1), ids, 1.0)
    parts = {part.name: getattr(teacher, part.name) for part in fields(teacher)}
    kept = replace(signals, teacher=TopStates(**parts, rows=rows))
    for name in DIVERGENCES:
        values, _ = terms.shared_tokens(kept, form="renormalised", divergence=name)
        assert values[0] == 0 and values[1] > 0
        (gradient,) = torch.autograd.grad(values.sum(), signals.student.hidden)
        assert gradient.isfinite().all() and (gradient[: len(STUDENT[0])] == 0).all()


def test_gold_of_each_pair(signals):
    """Rows of a head beyond the tokens take no part."""
    values, _ = terms.gold(signals, beta=0.3)
    share = len(VOCABULARIES.shared.teacher) / len(TOKENIZERS[1])
    for pair in (0, 1):
        p, q = shared_probabilities(signals, pair, extra=0)
        m = 0.3 * q + 0.7 * p
        matched = (0.3 * q * (q / m).log() + 0.7 * p * (p / m).log()).sum()
        rests = []
        for logits, ids in zip(alone(signals, pair, extra=0), VOCABULARIES.shared, strict=True):
            rest = torch.ones(len(logits), dtype=torch.bool)
            rest[ids] = False
            rests.append(logits.softmax(-1)[rest].sort(descending=True).values)
        width = max(map(len, rests))
        left, right = (F.pad(values, (0, width - len(values))) for values in rests)
        torch.testing.assert_close(values[pair], share * matched + (1 - share) * (left - right).abs().sum())


@pytest.mark.parametrize("reverse", [False, True])
def test_the_projected_kl_of_each_pair(signals, reverse):
    """With a whole matrix, which is tiny here."""
    values, _ = terms.x_token(signals, temperature=2.0, reverse=reverse)
    indices, weights = VOCABULARIES.token_map
    matrix = torch.zeros(len(TOKENIZERS[0]), len(TOKENIZERS[1]), dtype=torch.float64)
    for column in range(indices.shape[1]):
        exists = indices[:, column] >= 0
        matrix[exists.nonzero().flatten(), indices[exists, column]] += weights[exists, column]
    reached = matrix.sum(0) > 0
    for pair in (0, 1):
        student, teacher = alone(signals, pair, extra=0)
        p = ((student / 2).softmax(-1) @ matrix)[reached]
        log_p, log_q = (p / p.sum()).log(), (teacher[reached] / 2).log_softmax(-1)
        left, right = (log_p, log_q) if reverse else (log_q, log_p)
        torch.testing.assert_close(values[pair], 4 * (left.exp() * (left - right)).sum(), rtol=1e-6, atol=1e-6)


def test_h_kl_of_the_rejected_answers_is_nothing_where_no_parent_stands_alone(signals):
    none = replace(signals, student=replace(signals.student, parents=torch.arange(13) // 2))
    for form in ("p_kl", "h_kl"):
        values, logged = terms.x_token(replace(none, sides=(1,)), form=form)
        assert values.shape == (2,) and values.isfinite().all()
    whole, _ = terms.x_token(signals, form="h_kl")
    assert whole.isfinite().all()
    assert signals.vocabularies is not None  # as many tokens by rank as the smaller rest has, as published
    sure = common_pairs(signals.vocabularies.token_map.within(*token_counts(signals)), SURE)
    few = min(token_counts(signals)) - len(sure.student)
    assert torch.equal(whole, terms.x_token(signals, form="h_kl", largest=few)[0])
    empty = replace(signals, teacher=replace(signals.teacher, parents=torch.arange(14) + 100))
    values, logged = terms.shared_tokens(empty)
    assert values.tolist() == [0, 0] and logged["student_shared_mass"][0].tolist() == [0, 0]
    values.sum().backward()


def test_what_is_logged_is_a_share_of_the_parents(signals):
    step = StepCounts(pairs=2, tokens=(6, 7), parents=(5, 5))
    component = {"_component_": "prefkd.training.terms.shared_tokens", "answers": "both"}
    losses, metrics = Objective([component])(signals, step)
    both = [terms.shared_tokens(replace(signals, sides=(side,)))[0] for side in (0, 1)]
    torch.testing.assert_close(losses, 2 / 13 * sum(both))
    # One parent of each chosen answer and one of the rejected ones, of 10; a mean over pairs is the share.
    assert metrics["one_token_parents"].mean().item() == pytest.approx(3 / 10)


@pytest.mark.parametrize("name", ["shared_tokens", "gold", "x_token"])
def test_gradients_reach_the_student_where_parents_stand_alone(signals, name):
    losses, _ = Objective([{"_component_": f"prefkd.training.terms.{name}"}])(
        signals, StepCounts(pairs=2, tokens=(6, 7), parents=(5, 5))
    )
    losses.sum().backward()
    touched = (signals.student.hidden.grad != 0).any(-1).nonzero().flatten().tolist()
    assert touched == [0, 5]
    assert signals.student.head.grad is not None
    assert signals.teacher.hidden.grad is None


def test_a_head_with_fewer_rows_than_its_tokenizer_has_tokens(signals):
    small = [replace(side, head=side.head[:300]) for side in (signals.student, signals.teacher)]
    fewer = replace(signals, student=small[0], teacher=small[1])
    for function, settings in (
        (terms.shared_tokens, {}),
        (terms.gold, {}),
        (terms.x_token, {}),
        (terms.x_token, {"form": "h_kl"}),
    ):
        values, _ = function(fewer, **settings)
        assert values.isfinite().all() and (values != 0).all()


def test_uld_by_parents_compares_what_follows_the_same_text(signals):
    values = terms.uld(signals, align="parent")
    for pair in (0, 1):
        p, q = (logits.softmax(-1).sort(descending=True).values for logits in alone(signals, pair))
        width = max(len(p), len(q))
        left, right = (F.pad(side, (0, width - len(side))) for side in (p, q))
        torch.testing.assert_close(values[pair], (left - right).abs().sum())
