"""Compiled layers: the same log-probs and gradients, few graphs for all lengths, and eager where it does not work."""

from functools import partial

import pytest
import torch
from torch.distributed.tensor import DTensor

from prefkd.errors import PrefkdError
from prefkd.method.head_passes import EAGER, FUSED, compiled_passes
from prefkd.models import checks, compiled
from prefkd.models.checks import check_model
from prefkd.models.compiled import Recompilations, compile_layers, compile_obstacle, graph_count, is_compiled
from prefkd.models.load import ModelConfig, decoder_layers, load_causal_lm
from prefkd.models.logprob_model import LogprobModel
from prefkd.models.shard import shard
from prefkd.ranks import join_ranks
from tests.models.test_varlen import assert_same, make, results, tokens_of
from tests.processes import run_processes

CPU = torch.device("cpu")


@pytest.fixture
def traced(monkeypatch) -> None:
    """Traces layers without building anything, which takes a C++ compiler most of a minute."""
    monkeypatch.setattr(checks, "compile_layers", partial(compile_layers, backend="eager"))
    monkeypatch.setattr(checks, "compiled_passes", partial(compiled_passes, "eager"))


@pytest.mark.parametrize("recompute", [False, True])
def test_compiled_layers_over_packed_rows(tmp_path, traced, recompute):
    model = make(tmp_path, "mistral", "varlen")
    expected = results(model, tokens_of([0, 1, 2]))
    if recompute:
        model.lm.gradient_checkpointing_enable({"use_reentrant": False})
    model.compiles = True
    before = graph_count()
    check_model(model, tokens_of([0]), "student")
    model.train()
    assert model.packs and graph_count() > before and model.passes == compiled_passes("eager")
    assert_same(results(model, tokens_of([0, 1, 2])), expected)
    settled = graph_count()
    assert settled <= before + 8  # not one for each layer, nor for each length
    for rows in ([1], [2, 0], [0, 0, 1, 2]):
        results(model, tokens_of(rows))
    assert graph_count() == settled


def test_split_layers_are_compiled_too_or_run_as_they_are(tmp_path, traced, monkeypatch, caplog):
    logprobs, _ = results(make(tmp_path, "mistral", "mask"), tokens_of([0, 1, 2]))
    compiles = checks.compile_layers

    def split() -> list:
        found = []
        with join_ranks("cpu") as ranks:
            for layers, passes in ((compiles, compiled_passes("eager")), (broken, FUSED._replace(fold=absent))):
                monkeypatch.setattr(checks, "compile_layers", layers)
                monkeypatch.setattr(checks, "compiled_passes", lambda passes=passes: passes)
                monkeypatch.setattr(checks, "tries_compiling", lambda wanted, device: True)
                lm = load_causal_lm(ModelConfig(str(tmp_path)), dtype=torch.float32, device=ranks.assembly_device)
                model = LogprobModel(lm, attention="varlen", compile="auto")
                shard(model, ranks)
                before = graph_count()
                check_model(model, tokens_of([0]), "student")
                # What an optimizer is given then are this rank's parts.
                whole = [name for name, value in model.named_parameters() if not isinstance(value, DTensor)]
                model(tokens_of([0, 1, 2])).sum().backward()
                with torch.no_grad():
                    said = model(tokens_of([0, 1, 2]))
                found.append((graph_count() - before, model.passes == EAGER, whole, said))
        return [*found, "\n".join(caplog.messages)]

    for well, failing, said_so in run_processes(split):
        assert well[0] > 0 and failing[0] == 0 and (well[1], failing[1]) == (False, True)
        assert "compiling them failed: RuntimeError: no triton here" in said_so
        assert "compiling failed: RuntimeError: addmm has no out_dtype here" in said_so
        for _, _, whole, said in (well, failing):
            assert whole == []
            torch.testing.assert_close(said, logprobs.detach(), rtol=1e-5, atol=1e-5)


def checked(model, monkeypatch, caplog) -> tuple[str, str]:
    """The error where compiling is demanded, and the warning where it is tried, as on a GPU."""
    model.compiles = True
    with pytest.raises(PrefkdError) as error:
        check_model(model, tokens_of([0]), "student")
    model.compiles = "auto"
    monkeypatch.setattr(checks, "tries_compiling", lambda wanted, device: True)
    check_model(model, tokens_of([0]), "student")
    (line,) = caplog.messages
    return str(error.value), line


def broken(lm) -> None:
    def fails(*_, **__):
        raise RuntimeError("no triton here\nand more")

    for layer in decoder_layers(lm):
        layer.forward = fails


def wrong(lm) -> None:
    for layer in decoder_layers(lm):
        layer.forward = lambda states, **_: states


def learning_wrongly(lm) -> None:
    def doubled(layer, *states, **how):
        out = type(layer).forward(layer, *states, **how)
        return 2 * out - out.detach()

    for layer in decoder_layers(lm):
        layer.forward = partial(doubled, layer)


@pytest.mark.parametrize(
    ("failing", "fault"),
    [(broken, "no triton here"), (wrong, "log-probs differ by"), (learning_wrongly, "gradients by a share of")],
)
def test_what_cannot_be_compiled_runs_as_it_is(tmp_path, monkeypatch, caplog, failing, fault):
    model = make(tmp_path, "llama", "mask")
    expected = results(model, tokens_of([0, 1]))
    monkeypatch.setattr(checks, "compile_layers", failing)
    monkeypatch.setattr(checks, "compiled_passes", lambda: FUSED)
    error, line = checked(model, monkeypatch, caplog)
    assert error.startswith("student: compile: true fails: ") and fault in error
    assert error.endswith("; use auto or false")
    assert line.startswith("student: layers run as they are, since compiling them failed: ") and fault in line
    assert_same(results(model, tokens_of([0, 1])), expected)


def test_auto_leaves_a_cpu_alone(tmp_path):
    model = make(tmp_path, "llama", "mask")
    model.compiles = "auto"
    check_model(model, tokens_of([0]), "student")
    assert not is_compiled(model.lm)
    compile_layers(model.lm)
    with model.whole():  # where it generates
        assert not is_compiled(model.lm)
    assert is_compiled(model.lm)


def lying(*arguments):
    exponentials, rescale, running = FUSED.fold(*arguments)
    return exponentials, 2 * rescale, running


def absent(*_):
    raise RuntimeError("addmm has no out_dtype here\nand more")


@pytest.mark.parametrize(
    ("passes", "fault"),
    [(FUSED._replace(fold=lying), "are off by a share of"), (FUSED._replace(differences=absent), "no out_dtype here")],
)
def test_a_head_that_cannot_be_compiled_goes_step_by_step(tmp_path, monkeypatch, caplog, passes, fault):
    model = make(tmp_path, "llama", "mask")
    model.chunk_size = 1
    monkeypatch.setattr(checks, "compile_layers", lambda lm: None)
    monkeypatch.setattr(checks, "compiled_passes", lambda: passes)
    error, line = checked(model, monkeypatch, caplog)
    assert error.startswith("student: compile: true fails for the head: ") and fault in error
    assert line.startswith("student: the head goes through its logits step by step, since compiling failed: ")
    assert fault in line and model.passes == EAGER


def test_a_machine_without_a_compiler(monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")
    assert compile_obstacle() == "there is no C++ compiler here (g++, c++, clang++)"
    assert not compiled.tries_compiling("auto", torch.device("cuda"))
    monkeypatch.setenv("CXX", "/nowhere/g++")
    assert compile_obstacle() == "there is no C++ compiler here (/nowhere/g++)"


def test_only_late_graphs_are_told(monkeypatch):
    seen, told = Recompilations(settled=2), []
    for before, count in [(0, 5), (5, 6), (9, 9), (9, 11), (11, 11)]:
        monkeypatch.setattr(compiled, "graph_count", lambda count=before: count)
        seen.before_step()
        monkeypatch.setattr(compiled, "graph_count", lambda count=count: count)
        told.append(seen.after_step())
    assert told == [0, 0, 0, 2, 0]
