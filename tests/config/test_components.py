"""Components are imported, checked and called."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Optional, Union

import pytest
import torch

from prefkd.config.components import bind, build, component_problems, import_dotpath
from prefkd.config.hints import describe, fits
from prefkd.errors import PrefkdError


@dataclass
class Pair:
    left: Any
    right: Any = None


PAIR = {"_component_": f"{__name__}.Pair"}


def test_build_calls_with_configured_and_given_arguments():
    assert build(PAIR | {"right": 2}, 1) == Pair(1, 2)
    assert build(PAIR, left=1) == Pair(1)


def test_build_makes_nested_components_first():
    nested = PAIR | {"left": [PAIR | {"left": 1}, 2], "right": {"deep": PAIR | {"left": 3}}}
    assert build(nested) == Pair([Pair(1), 2], {"deep": Pair(3)})


def test_build_tells_what_a_component_refuses():
    with pytest.raises(PrefkdError, match=r"torch\.optim\.AdamW refuses its arguments: Invalid learning rate: -1"):
        build({"_component_": "torch.optim.AdamW", "lr": -1}, [torch.zeros(1)])


def test_bind_waits_for_the_remaining_arguments():
    bound = bind({"_component_": "torch.nn.functional.huber_loss", "delta": 2.0})
    assert isinstance(bound, partial)
    assert bound(torch.tensor(5.0), torch.tensor(0.0)) == 2.0 * (5.0 - 1.0)


@pytest.mark.parametrize(
    ("dotpath", "found"),
    [
        ("torch.optim.AdamW", torch.optim.AdamW),
        ("torch.nn.functional.huber_loss", torch.nn.functional.huber_loss),
        ("pathlib.Path.cwd", Path.cwd),
        ("xml.dom.minidom.parseString", "parseString"),  # a submodule that its package does not import
    ],
)
def test_import_dotpath(dotpath, found):
    assert import_dotpath(dotpath) == found or import_dotpath(dotpath).__name__ == found


@pytest.mark.parametrize(
    ("component", "supplied"),
    [
        ({"_component_": "torch.optim.AdamW", "lr": 1e-5, "betas": [0.9, 0.95], "fused": None}, ("params",)),
        ({"_component_": "torch.optim.SGD", "lr": 1}, ("params",)),
        ({"_component_": "transformers.get_constant_schedule"}, ("optimizer", "num_training_steps")),
        ({"_component_": "builtins.dict", "anything": "goes"}, ()),
        ({"_component_": "torch.zeros", "size": [1]}, ()),  # written in C, tells no parameters
        ({"_component_": "torchtune.training.metric_logging.DiskLogger", "log_dir": "logs", "more": 1}, ()),
    ],
    ids=lambda value: value.get("_component_") if isinstance(value, dict) else "",
)
def test_sound_components_have_no_problems(component, supplied):
    assert list(component_problems(component, supplied)) == []


@pytest.mark.parametrize(
    ("value", "hint", "answer"),
    [
        (1, float, True),
        (True, float, False),
        ("0.1", float, False),
        (1.0, int, False),
        (True, bool, True),
        ("text", str, True),
        ("a/b", Path, True),
        (None, Optional[float], True),  # noqa: UP045, as much code has it
        (None, float, False),
        ("high", Union[float, torch.Tensor], False),  # noqa: UP007
        ([1, 2], tuple[float, float], True),
        ([1, "b"], list[int], False),
        ("x", Literal["x", "y"], True),
        ("z", Literal["x", "y"] | None, False),
        ({"a": 1}, dict[str, int], True),
        # Where YAML cannot say, nothing is refused.
        ("x", Callable[[int], int], True),
        ("x", torch.dtype, True),
        ([1], Iterable[torch.Tensor], True),
        (1, "NotYetDefined", True),
        (1, Any, True),
    ],
)
def test_fits(value, hint, answer):
    assert fits(value, hint) is answer


def test_describe():
    assert describe(float | torch.Tensor | None) == "a number or null"
    assert describe(tuple[float, int]) == "a list of 2 (a number, an integer)"
    assert describe(list[Path]) == "a list, each a path"
    assert describe(Literal["a", "b"]) == "one of a, b"
