"""A frozen teacher reads a pair once: what it said is kept, and the same value comes back."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from prefkd.data.batches import PairBatch
from prefkd.data.collate import collate_pairs
from prefkd.data.pairs import DataConfig, load_pairs
from prefkd.data.rows import AlignedAnswer, AlignedRow, Reading
from prefkd.data.sides import ModelSide
from prefkd.data.steps import Microbatch, split_step
from prefkd.data.tokenizing import align_pairs
from prefkd.models.load import TeacherConfig, load_tokenizer
from prefkd.models.logprob_cache import KeptLogprobs
from prefkd.models.logprob_model import LogprobModel
from prefkd.models.questions import Asks
from prefkd.models.teacher import Teacher, TeacherOutput
from prefkd.ranks import Ranks
from tests.tiny import make_model, write_pairs

CPU = torch.device("cpu")
RANKS = Ranks(0, 1, CPU)
INSTRUCTIONS = ("{prompt} Be good.", "{prompt} Be bad.")
PAIRS = 7


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> TeacherConfig:
    return TeacherConfig(str(make_model(tmp_path_factory.mktemp("teacher"), "llama", "byte_level")), dtype="float32")


@pytest.fixture(scope="module")
def aligned(config, tmp_path_factory) -> Dataset:
    data = DataConfig(str(write_pairs(tmp_path_factory.mktemp("data") / "pairs.jsonl", PAIRS)), held_out_fraction=0.0)
    side = ModelSide(load_tokenizer(config))
    return align_pairs(load_pairs(data).train, side, side, config=data, contrast=INSTRUCTIONS)


@pytest.fixture
def passes(monkeypatch) -> list[int]:
    """The number of targets of each forward pass of any model, in order."""
    seen, forward = [], LogprobModel.forward

    def counted(self, tokens, *more):
        seen.append(len(tokens.targets))
        return forward(self, tokens, *more)

    monkeypatch.setattr(LogprobModel, "forward", counted)
    return seen


def batches(aligned: Dataset, rows: list[int], size: int = 2) -> list[PairBatch]:
    return [collate_pairs(aligned, microbatch, share_prompt=(True, True)) for microbatch in split_step(rows, size)]


def load(config: TeacherConfig, aligned: Dataset, asks: Asks) -> Teacher:
    teacher = Teacher(config, asks)
    teacher.load(batches(aligned, [0])[0].teacher, chunk_size=64, ranks=RANKS)
    return teacher


def values(output: TeacherOutput) -> dict[str, torch.Tensor]:
    found = (
        {}
        if output.scores is None
        else {name: value for name, value in vars(output.scores).items() if value is not None}
    )
    return found | ({} if output.logprobs is None else {"logprobs": output.logprobs})


@pytest.mark.parametrize(
    ("asks", "readings", "kept_readings"),
    [
        (Asks(reference=True), 1, 0),
        (Asks(reference=True, instructions=INSTRUCTIONS), 3, 0),
        (Asks(reference=True, logprobs=True), 1, 0),
        (Asks(reference=True, instructions=INSTRUCTIONS, states=True), 3, 1),
        (Asks(states=True), 1, 1),
        (Asks(instructions=INSTRUCTIONS, contrast_logprobs=False, contrast_states=("positive",)), 1, 1),
        (Asks(reference=True, instructions=INSTRUCTIONS, contrast_states=("positive", "negative")), 3, 2),
        (Asks(), 0, 0),
    ],
)
def test_a_pair_is_read_once(config, aligned, passes, asks, readings, kept_readings):
    teacher = load(config, aligned, asks)
    rows = [*range(PAIRS)]
    passes.clear()
    first = [teacher(batch) for batch in batches(aligned, rows)]
    assert len(passes) == readings * len(first)
    passes.clear()
    again = [teacher(batch) for batch in batches(aligned, rows)]
    assert len(passes) == kept_readings * len(first)
    for one, other in zip(first, again, strict=True):
        assert values(one).keys() == values(other).keys()
        for name, value in values(one).items():
            assert torch.equal(value, values(other)[name]), name
        asked = {*asks.contrast_states} | ({"teacher"} if asks.states else set())
        assert one.states.keys() == other.states.keys() == asked


def test_kept_values_are_those_of_the_pair_in_any_company(config, aligned, passes):
    teacher = load(config, aligned, Asks(reference=True, instructions=INSTRUCTIONS))
    for batch in batches(aligned, [*range(PAIRS)]):
        teacher(batch)
    passes.clear()
    for batch in batches(aligned, [5, 0, 3], size=3):
        kept, read = values(teacher(batch)), values(teacher.read(batch))
        for name, value in read.items():
            torch.testing.assert_close(kept[name], value, rtol=1e-5, atol=1e-5)
            assert not kept[name][~batch.parent_mask].any()
    assert len(passes) == 3  # those of `read`


def test_another_data_set_is_other_pairs(config, aligned, passes):
    teacher = load(config, aligned, Asks(reference=True))
    passes.clear()
    for rows in (aligned, aligned.select(range(1, PAIRS))):
        teacher(batches(rows, [0, 1])[0])
    assert len(passes) == 2


def test_without_room_it_is_read_again(config, aligned, passes):
    teacher = load(config, aligned, Asks(reference=True))
    teacher._kept = KeptLogprobs(RANKS, limit=0)
    passes.clear()
    for _ in range(2):
        teacher(batches(aligned, [0, 1])[0])
    assert len(passes) == 2


def one_of_two(others: list) -> Ranks:
    """A rank, and what the other one has read at each moment."""
    kind = type("OneOfTwo", (Ranks,), {"gather": lambda self, value: [value, *others]})
    return kind(0, 2, CPU)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, PAIRS - 1), min_size=1, max_size=6, unique=True), st.data())
def test_ranks_decide_alike(aligned, rows, data):
    """A step is answered from what is kept only if each of its pairs is, whichever of them a rank has."""
    kept = KeptLogprobs(one_of_two([]))
    known = data.draw(st.lists(st.sampled_from(rows), unique=True))
    for row in known:
        batch = collate_pairs(aligned, Microbatch([row]), share_prompt=(True, True))
        kept.keep(batch, {"teacher": torch.randn(batch.parent_mask.shape)})
    for row in rows:
        batch = collate_pairs(aligned, Microbatch([row], step=rows), share_prompt=(True, True))
        assert (kept.find(batch) is not None) == (set(known) == set(rows))


def test_what_another_rank_has_read_is_kept_here(aligned):
    theirs, mine = (collate_pairs(aligned, Microbatch(rows), share_prompt=(True, True)) for rows in ([2, 4], [0, 1]))
    logprobs = [{"teacher": torch.randn(batch.parent_mask.shape) * batch.parent_mask} for batch in (theirs, mine)]
    told: list = []
    there = KeptLogprobs(
        type("Other", (Ranks,), {"gather": lambda self, value: told.append(value) or [value]})(1, 2, CPU)
    )
    there.keep(theirs, logprobs[0])
    there.state_dict()  # what is on its way has come
    here = KeptLogprobs(one_of_two(told))
    here.keep(mine, logprobs[1])
    found = here.find(theirs)
    assert found is not None and torch.equal(found["teacher"], logprobs[0]["teacher"])


@pytest.fixture(scope="module")
def wide(tmp_path_factory) -> str:
    """A teacher wide enough for nf4, with a window that its texts are longer than."""
    folder = tmp_path_factory.mktemp("wide")
    sizes = {"hidden_size": 64, "intermediate_size": 64, "head_dim": 16}
    return str(make_model(folder, "mistral", "byte_level", **sizes, sliding_window=24, initializer_range=0.1))


STATES = Asks(instructions=INSTRUCTIONS, contrast_logprobs=False, contrast_states=("positive", "negative"))
ALL = Asks(reference=True, instructions=INSTRUCTIONS, states=True, contrast_states=("negative",))


@pytest.mark.parametrize("asks", [Asks(reference=True, instructions=INSTRUCTIONS), STATES, ALL])
@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_all_readings_in_one_pass_are_those_of_three(wide, aligned, passes, quantization, asks):
    """Without a mask a teacher reads a pair once for all prompts; what these begin with is in the row once."""
    read = {}
    for attention in ("mask", "varlen"):
        teacher = Teacher(TeacherConfig(wide, dtype="float32", quantization=quantization), asks)
        made = [
            collate_pairs(aligned, Microbatch(rows), share_prompt=(True, True), together=teacher.together)
            for rows in ([0, 1, 2], [5])
        ]
        teacher.load(made[0].teacher, chunk_size=64, ranks=RANKS, attention=attention)
        passes.clear()
        read[attention] = [teacher.read(batch) for batch in made]
        assert len(passes) == 2 * (1 if attention == "varlen" else 3 if asks.reference else 2)
    for masked, packed in zip(*read.values(), strict=True):
        for name, value in values(masked).items():
            torch.testing.assert_close(values(packed)[name], value, rtol=1e-6, atol=1e-6 * value.abs().max().item())
        assert masked.states.keys() == packed.states.keys()
        for name, states in masked.states.items():
            ours = packed.states[name]
            assert (ours.lengths, ours.parents.tolist()) == (states.lengths, states.parents.tolist())
            torch.testing.assert_close(ours.hidden, states.hidden, rtol=1e-5, atol=1e-5)


@settings(max_examples=10, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), *[st.integers(1, 4)] * 5), min_size=1, max_size=3),
    st.sampled_from([("teacher", "positive", "negative"), ("positive", "negative"), ("teacher", "negative")]),
)
def test_a_token_of_a_joined_row_sees_its_own_text(sizes, names):
    """Whatever the prompts have in common: nothing, a part, or all of the shortest one."""
    rows: list[dict[str, Any]] = []
    for common, own, positive, negative, *answers in sizes:
        prompts = {
            name: [7] * common + [n] * size
            for n, (name, size) in enumerate({"teacher": own, "positive": positive, "negative": negative}.items())
        }
        ids: Any = tuple([*range(20, 20 + size)] for size in answers)
        parents: Any = tuple(map(range, answers))
        student, teacher = (Reading(prompt, ids, parents) for prompt in ([1], prompts.pop("teacher")))
        aligned: Any = tuple(AlignedAnswer(size, ends=True, characters=size, single=size) for size in answers)
        rows.append({"file": "made", "row": 1, **AlignedRow(student, teacher, aligned, prompts).columns()})
    batch = collate_pairs(
        Dataset.from_list(rows), Microbatch([*range(len(rows))]), share_prompt=(True, True), together=names
    )
    joined = batch.together
    assert joined is not None and joined.packing.keys is not None
    packing, all_keys = joined.packing, joined.packing.keys
    ids, positions, seen = joined.input_ids[0], joined.position_ids[0], {}
    for (q, q_end), (k, k_end) in zip(
        pairwise(packing.query_starts.tolist()), pairwise(packing.key_starts.tolist()), strict=True
    ):
        for query in range(q, q_end):
            seen[query] = all_keys[k : k_end - (q_end - 1 - query)]  # causal to the bottom right
            assert seen[query][-1] == query and positions[seen[query]].tolist() == [*range(positions[query] + 1)]
    views = [getattr(batch, name) for name in names]
    assert joined.targets.tolist() == [token for view in views for token in view.targets.tolist()]
    texts = [ids[seen[place]].tolist() for place in joined.predictors.tolist()]
    expected = []
    for name in names:
        for answer in ("chosen", "rejected"):
            for row in rows:
                text = row[f"{name}_prompt"]
                expected += [text + row[f"teacher_{answer}"][:n] for n in range(len(row[f"teacher_{answer}"]))]
    assert texts == expected
    assert len(ids) < sum(len(view.packing.places) for view in views) or not any(row[0] for row in sizes)
