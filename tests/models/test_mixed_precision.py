"""Weights in bfloat16 where they are used, in float32 where they learn: FSDP casts them, in one process as in many."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.tensor import DTensor

from prefkd.data.batches import TokenBatch
from prefkd.data.collate import collate_pairs
from prefkd.data.steps import Microbatch
from prefkd.method.dual_space import DualSpaceProjectors
from prefkd.models import checks
from prefkd.models.checks import check_model
from prefkd.models.load import ModelConfig, load_causal_lm
from prefkd.models.logprob_model import LogprobModel, TokenStates
from prefkd.models.shard import shard
from prefkd.ranks import Ranks, join_ranks
from tests.models.architectures import random_pairs
from tests.processes import run_processes
from tests.tiny import make_model

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"), "qwen2", "byte_level", initializer_range=0.08)


def tokens() -> TokenBatch:
    return collate_pairs(random_pairs(100, seed=2), Microbatch([0, 1]), share_prompt=(True, True)).student


def load(folder: Path, ranks: Ranks) -> LogprobModel:
    lm = load_causal_lm(ModelConfig(str(folder)), dtype=torch.float32, device=ranks.assembly_device)
    projectors = DualSpaceProjectors(32, 32).to(ranks.assembly_device)
    return LogprobModel(lm, precision=torch.bfloat16, projectors=projectors)


def look(folder: Path, monkeypatch) -> tuple[torch.Tensor, list[float], set[torch.dtype], set[torch.dtype]]:
    """Log-probs, norms of the gradients, types of weights in a forward pass, and of those that learn."""
    used: set[torch.dtype] = set()
    with join_ranks("cpu") as ranks:
        model = load(folder, ranks)
        shard(model, ranks)
        for module in model.lm.modules():
            module.register_forward_hook(
                lambda module, *_: used.update(weight.dtype for weight in module.parameters(recurse=False))
            )
        # Suspicious or not, it is compared once more in float32, where nothing may be rounded on the way.
        monkeypatch.setattr(checks, "ROUNDED", -1.0)
        check_model(model, tokens(), "model")
        used.clear()

        def read(states: TokenStates) -> torch.Tensor:
            assert model.projectors is not None and model.projectors.t2s.weight.dtype == torch.bfloat16
            assert not torch.is_autocast_enabled("cpu")
            return states.logprobs()

        logprobs = model(tokens(), read)
        logprobs.sum().backward()
        learn = {parameter.dtype for parameter in model.parameters()} | {logprobs.dtype}
        gradients: list[Any] = [parameter.grad for parameter in model.lm.parameters()]
        whole = [value.full_tensor() if isinstance(value, DTensor) else value for value in gradients]
        learn |= {gradient.dtype for gradient in whole}
        return logprobs.detach(), [gradient.norm().item() for gradient in whole], used, learn


def test_one_process_and_two_cast_each_weight_once(folder, monkeypatch):
    one = run_processes(lambda: look(folder, monkeypatch), processes=1)[0]
    two = run_processes(lambda: look(folder, monkeypatch), processes=2)[0]
    for logprobs, norms, used, learn in (one, two):
        assert used == {torch.bfloat16} and learn == {torch.float32}
        torch.testing.assert_close(logprobs, one[0], rtol=0, atol=1e-6)
        assert norms == pytest.approx(one[1], rel=1e-3)
    model = load(folder, Ranks(0, 1, CPU))  # without FSDP, autocast does it
    logprobs = model(tokens())
    torch.testing.assert_close(one[0], logprobs.detach(), rtol=0, atol=0.1)
    assert (one[0] - logprobs.detach()).abs().mean() < 0.02
