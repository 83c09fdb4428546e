"""A teacher's outer layers next to its scores: they come back as they were, tied or not."""

import json
from types import SimpleNamespace

import pytest
import torch

from prefkd.data.scores import HEAD
from prefkd.errors import PrefkdError
from prefkd.models.keep_config import KeepConfig
from prefkd.models.kept_states import head_bytes, kept_hidden_size, load_head, save_head, state_bytes
from prefkd.models.load import TeacherConfig
from prefkd.models.logprob_model import TokenStates
from prefkd.ranks import Ranks

CPU, META = torch.device("cpu"), torch.device("meta")


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("stored", ["bfloat16", "float32"])
def test_outer_layers_come_back(tmp_path, tied, stored):
    """In the type in which the checkpoint has them, though the teacher computes in a wider one."""
    about = {"model_type": "gemma2", "vocab_size": 7, "hidden_size": 8, "tie_word_embeddings": tied, "dtype": stored}
    (tmp_path / "config.json").write_text(json.dumps(about))
    config = TeacherConfig(str(tmp_path), dtype="float32")
    head, embedding = (torch.randn(7, 8).to(getattr(torch, stored)).float() for _ in range(2))
    ids, hidden = torch.zeros(2, dtype=torch.long), torch.zeros(2, 8)
    states = TokenStates(
        ids, ids, ids, hidden, head if tied else embedding, head, (1, 1), chunk_size=1, scale=0.1, cap=30.0
    )
    model = SimpleNamespace(states=lambda _: states)
    save_head(tmp_path, model, config, None, Ranks(0, 1, CPU))  # pyright: ignore[reportArgumentType]
    found = load_head(tmp_path, device=CPU, dtype=torch.float32)
    assert found.head.equal(head) and found.embedding.equal(states.embedding)
    assert (found.scale, found.cap) == (0.1, 30.0)
    outline = load_head(tmp_path, device=META, dtype=torch.float32)
    assert found.size == outline.size == (1 if tied else 2) * 7 * 8 * 4
    assert (outline.head is outline.embedding) == tied and outline.head.is_meta
    width = 2 if stored == "bfloat16" else 4
    assert head_bytes(config) == found.size * width // 4
    assert abs((tmp_path / HEAD).stat().st_size - head_bytes(config)) < 500  # its header
    kept = KeepConfig(top_k=0, states=True)
    assert kept.size(config, tokens=10, chosen=6) == 6 * 8 * 2 + head_bytes(config)
    assert (kept_hidden_size(tmp_path), state_bytes(config)) == (8, 16)
    (tmp_path / HEAD).write_bytes(b"half of it")
    with pytest.raises(PrefkdError, match=r"head.safetensors is damaged; remove it and run score again"):
        load_head(tmp_path, device=CPU)
