"""How many logits there is room for, and that it changes nothing but memory."""

from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prefkd.models import logit_room
from prefkd.models.logit_room import CPU_BYTES, LEAST_BYTES, MOST_BYTES, gpu_memory, logit_rows
from tests.models.test_varlen import assert_same, make, results, tokens_of

GIB = 2**30


@settings(max_examples=50, deadline=None)
@given(vocabulary=st.integers(2, 300_000), gib=st.none() | st.floats(0, 200))
def test_rows_fill_the_room_and_no_more(vocabulary, gib):
    rows = logit_rows(vocabulary, None if gib is None else gib * GIB)
    room = CPU_BYTES if gib is None else min(max(gib * GIB / 80, LEAST_BYTES), MOST_BYTES)
    assert rows * 4 * vocabulary <= room < (rows + 1) * 4 * vocabulary + 1


def test_a_card_decides():
    qwen = 151_936
    assert [logit_rows(qwen, gib * GIB) for gib in (23.5, 79.2, 139.8)] == [518, 1749, 1766]
    assert logit_rows(qwen, None) == 441 and logit_rows(10**12, None) == 1
    assert gpu_memory(torch.device("cpu")) is None


def test_any_room_gives_the_same_gradients(tmp_path, monkeypatch):
    monkeypatch.setattr(logit_room, "LEAST_BYTES", 0)
    model = make(tmp_path, "llama", "mask")
    head: Any = model.lm.get_output_embeddings()
    tokens, vocabulary = tokens_of([0, 1, 2]), model.lm.config.vocab_size
    whole, seen = results(model, tokens), set()
    for rows in (1, 2, 5, 1000):
        model.gpu_bytes = 80 * 4 * vocabulary * (rows + 0.5)
        seen.add(model.logit_rows(head.weight))
        assert_same(results(model, tokens), whole)
    assert seen == {1, 2, 5, 1000}
