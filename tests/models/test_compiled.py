"""Compiled layers: the same log-probs and gradients, few graphs for all lengths, and eager where it does not work."""

from functools import partial

import pytest
import torch

from prefkd.errors import PrefkdError
from prefkd.models import compiled, logprob_model
from prefkd.models.compiled import Recompilations, compile_layers, compile_obstacle, graph_count, is_compiled
from prefkd.models.load import decoder_layers
from tests.models.test_varlen import assert_same, make, results, tokens_of

CPU = torch.device("cpu")


@pytest.fixture
def traced(monkeypatch) -> None:
    """Traces layers without building anything, which takes a C++ compiler most of a minute."""
    monkeypatch.setattr(logprob_model, "compile_layers", partial(compile_layers, backend="eager"))


@pytest.mark.parametrize("recompute", [False, True])
def test_compiled_layers_over_packed_rows(tmp_path, traced, recompute):
    model = make(tmp_path, "mistral", "varlen")
    expected = results(model, tokens_of([0, 1, 2]))
    if recompute:
        model.lm.gradient_checkpointing_enable({"use_reentrant": False})
    model.compiles = True
    before = graph_count()
    model.check(tokens_of([0]), "student")
    model.train()
    assert model.packs and graph_count() > before
    assert_same(results(model, tokens_of([0, 1, 2])), expected)
    settled = graph_count()
    assert settled <= before + 4  # not one for each layer, nor for each length
    for rows in ([1], [2, 0], [0, 0, 1, 2]):
        results(model, tokens_of(rows))
    assert graph_count() == settled


def broken(lm) -> None:
    def fails(*_, **__):
        raise RuntimeError("no triton here\nand more")

    for layer in decoder_layers(lm):
        layer.forward = fails


def wrong(lm) -> None:
    for layer in decoder_layers(lm):
        layer.forward = lambda states, **_: states


@pytest.mark.parametrize(("failing", "fault"), [(broken, "no triton here"), (wrong, "log-probs differ by")])
def test_what_cannot_be_compiled_runs_as_it_is(tmp_path, monkeypatch, caplog, failing, fault):
    model = make(tmp_path, "llama", "mask")
    expected = results(model, tokens_of([0, 1]))
    monkeypatch.setattr(logprob_model, "compile_layers", failing)
    model.compiles = True
    with pytest.raises(PrefkdError, match=rf"^student: compile: true cannot be done: .*{fault}.*; use auto or false$"):
        model.check(tokens_of([0]), "student")
    model.compiles = "auto"
    monkeypatch.setattr(logprob_model, "tries_compiling", lambda wanted, device: True)  # as on a GPU
    model.check(tokens_of([0]), "student")
    (line,) = caplog.messages
    assert line.startswith("student: layers run as they are, since compiling them failed: ") and fault in line
    assert_same(results(model, tokens_of([0, 1])), expected)


def test_auto_leaves_a_cpu_alone(tmp_path):
    model = make(tmp_path, "llama", "mask")
    model.compiles = "auto"
    model.check(tokens_of([0]), "student")
    assert not is_compiled(model.lm)
    compile_layers(model.lm)
    assert is_compiled(model.lm)


def test_a_machine_without_a_compiler(monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")
    assert compile_obstacle() == "there is no C++ compiler here (g++, c++, clang++)"
    assert not compiled.tries_compiling("auto", torch.device("cuda"))
    monkeypatch.setenv("CXX", "/nowhere/g++")
    assert compile_obstacle() == "there is no C++ compiler here (/nowhere/g++)"


def test_only_late_graphs_are_told(monkeypatch):
    monkeypatch.setattr(compiled, "graph_count", lambda: count)
    count = 3
    seen = Recompilations(settled=2)
    told = []
    for count in (5, 6, 6, 8, 8):  # noqa: B007
        told.append(seen.after_step())
    assert told == [0, 0, 0, 2, 0]
