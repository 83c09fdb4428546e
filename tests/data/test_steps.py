"""Which rows make a step: every row once, whatever the number of ranks."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from prefkd.data.steps import plan_steps, split_step


@given(st.lists(st.integers(1, 500), min_size=1, max_size=60), st.integers(1, 9), st.integers(0, 3))
def test_an_epoch_holds_every_row_once(lengths, pairs_per_step, epoch):
    steps = plan_steps(lengths, pairs_per_step, seed=1, epoch=epoch)
    assert sorted(row for step in steps for row in step) == list(range(len(lengths)))
    assert sorted(map(len, steps), reverse=True)[:-1] == [pairs_per_step] * (len(steps) - 1)
    assert steps == plan_steps(lengths, pairs_per_step, seed=1, epoch=epoch)


def test_epochs_are_shuffled_differently():
    lengths = list(range(64))
    assert plan_steps(lengths, 4, seed=1, epoch=0) != plan_steps(lengths, 4, seed=1, epoch=1)


@given(st.integers(1, 20), st.integers(1, 6), st.integers(1, 5))
def test_ranks_share_a_step_without_loss_or_repeat(rows, size, world_size):
    shares = [split_step(list(range(rows)), size, rank, world_size) for rank in range(world_size)]
    assert len({len(share) for share in shares}) == 1
    counted = [row for share in shares for m in share for row in m.rows[: len(m.rows) - m.fillers]]
    assert sorted(counted) == list(range(rows))


@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(50, 120), st.integers(1, 4))
def test_a_budget_of_tokens_is_never_exceeded(tokens, budget, world_size):
    rows = list(range(len(tokens)))[::-1]
    shares = [split_step(rows, budget, rank, world_size, tokens=tokens) for rank in range(world_size)]
    assert len({len(share) for share in shares}) == 1
    microbatches = [m for share in shares for m in share if not m.fillers]
    assert sorted(row for m in microbatches for row in m.rows) == rows[::-1]
    used = [sum(tokens[row] for row in m.rows) for m in microbatches]
    assert max(used) <= budget
    # Two that follow each other would not have fitted into one.
    in_order = sorted(microbatches, key=lambda m: rows.index(m.rows[0]))
    for one, other in pairwise(in_order):
        assert sum(tokens[row] for row in one.rows) + tokens[other.rows[0]] > budget
