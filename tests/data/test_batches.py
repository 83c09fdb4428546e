"""Which rows make a step: every row once, whatever the number of ranks."""

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
