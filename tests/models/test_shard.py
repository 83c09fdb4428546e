"""Split models: a process holds its part, never all of one; and they compute what whole ones compute."""

import ctypes
from collections import Counter
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp._fully_shard import _fsdp_param_group
from torch.distributed.tensor import DTensor

from prefkd.data.batches import TokenBatch
from prefkd.data.collate import collate_pairs
from prefkd.data.steps import Microbatch
from prefkd.errors import PrefkdError
from prefkd.models.checks import check_model
from prefkd.models.frozen import is_split
from prefkd.models.load import ModelConfig, TeacherConfig, decoder_layers, load_causal_lm
from prefkd.models.logprob_model import LogprobModel
from prefkd.models.quantize import quantize
from prefkd.models.shard import after_microbatches, before_microbatch, shard
from prefkd.ranks import Ranks, join_ranks
from tests.models.architectures import ARCHITECTURES, random_pairs
from tests.processes import run_processes
from tests.tiny import make_model

CPU = torch.device("cpu")
LONGROPE = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "factor": 2.0}
KINDS = ARCHITECTURES | {
    "phi3-longrope": {
        "rope_parameters": LONGROPE | {"rope_theta": 1e4, "original_max_position_embeddings": 256},
        "num_key_value_heads": 4,
    }
}


def tokens() -> TokenBatch:
    return collate_pairs(random_pairs(100, seed=2), Microbatch([0, 1]), share_prompt=(True, True)).student


def put_together(folder: Path, ranks: Ranks) -> LogprobModel:
    lm = load_causal_lm(ModelConfig(str(folder)), dtype=torch.float32, device=ranks.assembly_device)
    return LogprobModel(lm).eval()


def results(model: LogprobModel) -> list[float | None]:
    """The sum of all log-probs, and the norm of each gradient."""
    logprobs = model(tokens())
    logprobs.sum().backward()
    gradients = [value.grad for value in model.parameters()]
    whole = [value.full_tensor() if isinstance(value, DTensor) else value for value in gradients]
    return [logprobs.sum().item(), *(value.norm().item() for value in whole if value is not None)]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {
        name: make_model(folder / name, name.split("-")[0], "byte_level", **settings)
        for name, settings in KINDS.items()
    }


def test_every_architecture_is_the_same_in_two_processes(models):
    def all_of_them() -> dict[str, list[float | None]]:
        with join_ranks("cpu") as ranks:
            found = {}
            for name, folder in models.items():
                model = put_together(folder, ranks)
                shard(model, ranks)
                check_model(model, tokens(), name)
                found[name] = results(model)
        return found

    one = {name: results(put_together(folder, Ranks(0, 1, CPU))) for name, folder in models.items()}
    for found in run_processes(all_of_them):
        for name, expected in one.items():
            assert found[name] == pytest.approx(expected, rel=1e-4), name


# Settings, how often a group of weights then sums gradients over ranks and over nodes in two microbatches, and how many
# groups are gathered: the root for each of them, each of two layers forward and backward.
WAYS = {
    "split over all": ({}, (2, 0), 10),
    "once a step": ({"sync_once": True}, (1, 0), 3),
    "split over a node": ({"over": "node"}, (2, 1), 10),
    "adapters": ({}, (1, 0), 10),
}


def test_ranks_wait_with_gradients_for_the_last_microbatch(models, monkeypatch):
    counts = Counter()

    def counted(module: ModuleType, name: str) -> None:
        function = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args, **how: counts.update([name]) or function(*args, **how))

    counted(_fsdp_param_group, "foreach_all_gather")
    counted(_fsdp_param_group, "foreach_reduce")
    counted(dist, "all_reduce")
    rows = random_pairs(100, seed=2)
    parts = [collate_pairs(rows, Microbatch([number % 3]), share_prompt=(True, True)).student for number in range(8)]

    def gradients(model: LogprobModel, own: list[TokenBatch]) -> dict[str, torch.Tensor]:
        for number, part in enumerate(own, start=1):
            before_microbatch(model, is_last=number == len(own))
            model(part).sum().backward()
        found = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
        return {name: value.full_tensor() if isinstance(value, DTensor) else value for name, value in found.items()}

    def all_ways() -> dict[str, Any]:
        with join_ranks("cpu") as ranks:
            found = {}
            for name, (how, *_) in WAYS.items():
                model = put_together(models["llama"], ranks)
                model.lm.get_input_embeddings().requires_grad_(name != "adapters")
                shard(model, ranks, **how)
                counts.clear()
                of_step = gradients(model, parts[ranks.rank :: ranks.world_size])
                met, gathered = (counts["foreach_reduce"], counts["all_reduce"]), counts["foreach_all_gather"]
                after_microbatches(model)
                counts.clear()
                with torch.no_grad():
                    model(parts[0])
                layers = [value for layer in decoder_layers(model.lm) for value in layer.parameters()]
                split = all(isinstance(value, DTensor) for value in layers)
                found[name] = of_step, met, gathered, (counts["foreach_all_gather"], split)
        return found

    expected = gradients(put_together(models["llama"], Ranks(0, 1, CPU)), parts)
    groups = 3  # two layers, and the root
    for found in run_processes(all_ways, processes=4, nodes=2):
        for name, (of_step, met, gathered, evaluated) in found.items():
            assert met == tuple(groups * count for count in WAYS[name][1]), name
            assert gathered == WAYS[name][2], name
            assert evaluated == (groups, True), name  # outside of a step no layer stays whole
            assert len(of_step) >= len(expected) - 1
            for weight, mean in of_step.items():  # FSDP2 takes that over ranks
                torch.testing.assert_close(4 * mean, expected[weight], rtol=1e-5, atol=1e-5, msg=f"{name}: {weight}")


def test_one_process_sums_its_gradient_where_the_optimizer_reads_it(models):
    """A second gradient, summed until the last microbatch, would take as much memory again."""

    def step() -> list[torch.Tensor | None]:
        with join_ranks("cpu") as ranks:
            model = put_together(models["llama"], ranks)
            shard(model, ranks)
            for is_last in (False, True):
                before_microbatch(model, is_last=is_last)
                model(tokens()).sum().backward()
                assert all(value.grad is not None for value in model.parameters()) and not model.sums_on_rank
            return [value.grad.full_tensor() for value in model.parameters() if isinstance(value.grad, DTensor)]

    plain = put_together(models["llama"], Ranks(0, 1, CPU))
    for _ in range(2):
        plain(tokens()).sum().backward()
    ((*found,),) = run_processes(step, processes=1)
    torch.testing.assert_close(found, [value.grad for value in plain.parameters()], rtol=1e-5, atol=1e-5)


def test_a_process_holds_half_and_has_never_held_more_than_a_layer_beyond(tmp_path, monkeypatch):
    # Large enough for what else a process takes, some 10 MB, not to count.
    sizes = {"hidden_size": 384, "intermediate_size": 1536, "head_dim": 96, "num_hidden_layers": 12}
    folder = make_model(tmp_path, "llama", "byte_level", **sizes, initializer_range=0.02)

    seen, broadcast = [], Ranks.broadcast

    def observed(ranks: Ranks, values: torch.Tensor) -> None:
        broadcast(ranks, values)
        seen.append(memory())

    def load() -> tuple[int, int, int]:
        return_freed_memory()
        with join_ranks("cpu") as ranks:
            before = memory()
            model = put_together(folder, ranks)
            shard(model, ranks)
            peak = max(seen) - before
            model(tokens()).sum().backward()
            optimizer = torch.optim.AdamW(model.parameters())
            optimizer.step()
            states = [value for state in optimizer.state.values() for value in state.values() if value.dim()]
            return peak, stored(model.parameters()), stored(states)

    monkeypatch.setattr(Ranks, "broadcast", observed)
    whole = stored(put_together(folder, Ranks(0, 1, CPU)).parameters())
    (_, *main), (peak, *other) = run_processes(load)
    for parameters, states in (main, other):
        assert parameters <= 0.55 * whole and states <= 0.55 * 2 * whole
    assert 0.4 * whole < peak < 0.75 * whole


def return_freed_memory() -> None:
    """What is freed is to go back to the system at once, so that memory in use can be told from it."""
    library = ctypes.CDLL(None)
    library.mallopt(-3, 1 << 16)  # M_MMAP_THRESHOLD, which would grow
    library.malloc_trim(0)


def memory() -> int:
    """Bytes that this process has in memory, apart from files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


def stored(tensors) -> int:
    own = (value.to_local() if isinstance(value, DTensor) else value for value in tensors)
    return sum(value.numel() * value.element_size() for value in own)


def test_nf4_is_the_same_split_or_not(tmp_path):
    sizes = {"hidden_size": 128, "intermediate_size": 512, "head_dim": 32}
    folder = make_model(tmp_path, "llama", "byte_level", **sizes, initializer_range=0.08)

    def split() -> torch.Tensor:
        with join_ranks("cpu") as ranks:
            model = put_together(folder, ranks).freeze()
            shard(model, ranks, prepare=partial(quantize, kind="nf4", shards=2))
            return model(tokens())

    whole = put_together(folder, Ranks(0, 1, CPU)).freeze()
    quantize(whole.lm, "nf4", shards=2)
    for found in run_processes(split):
        torch.testing.assert_close(found, whole(tokens()), rtol=1e-5, atol=1e-5)


def test_nf4_that_cannot_be_split(tmp_path):
    make_model(tmp_path, "llama", "byte_level", intermediate_size=66, hidden_size=32)
    lm = load_causal_lm(ModelConfig(str(tmp_path)), dtype=torch.float32, device=CPU)
    with pytest.raises(PrefkdError, match="it cannot be split over 3 processes; use placement: replicate"):
        quantize(lm, "nf4", shards=3)


def test_offloading_needs_torchrun(models):
    ranks = Ranks(0, 1, CPU)
    with pytest.raises(PrefkdError, match="cpu_offload is done by FSDP: run with --nproc-per-node"):
        shard(put_together(models["llama"], ranks), ranks, cpu_offload=True)


@pytest.mark.parametrize(
    ("settings", "gigabytes", "device", "split"),
    [
        ({}, 1e-5, "cuda", True),
        ({}, 80, "cuda", False),
        ({}, 1e-5, "cpu", False),
        ({"quantization": "nf4"}, 1e-5, "cuda", True),
        ({"quantization": "int8"}, 1e-5, "cuda", False),
        ({"placement": "replicate"}, 1e-5, "cuda", False),
        ({"placement": "shard"}, 80, "cpu", True),
    ],
)
def test_what_auto_splits(models, monkeypatch, settings, gigabytes, device, split):
    card = SimpleNamespace(total_memory=int(gigabytes * 1e9))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: card)
    config = TeacherConfig(str(models["llama"]), **settings)
    assert is_split(config, Ranks(0, 2, torch.device(device))) == split
    assert not is_split(config, Ranks(0, 1, torch.device(device)))
