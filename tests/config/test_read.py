"""YAML and overrides become a recipe's dataclass. (What is said of mistakes: tests/cli/errors.snap.)"""

from collections.abc import Iterator
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from prefkd import catalog
from prefkd.config import Component, component, load_config, save_config
from prefkd.errors import ConfigError, PrefkdError


@dataclass
class Model:
    path: Path
    dtype: Literal["float32", "bfloat16"] = "float32"

    def problems(self) -> Iterator[str]:
        if self.path.name == "broken":
            yield "path: broken; mend it"
        self.path.is_file()


@dataclass
class Teacher(Model):
    temperature: float = 1.0


@dataclass
class Config:
    student: Model
    teacher: Teacher | None = None
    betas: tuple[float, float] = (0.9, 0.95)
    files: list[Path] = field(default_factory=list)
    others: list[Model] = field(default_factory=list)
    parameters: dict[str, Any] = field(default_factory=lambda: {"k": 1.0})
    lr: float = 1e-6
    max_steps: int | None = None
    shuffle: bool = True
    name: str = "run"
    optimizer: Component = component("torch.optim.AdamW", supplied=("params",), lr=1e-6, weight_decay=0.0)
    logger: Component | None = None

    def problems(self) -> Iterator[str]:
        if self.max_steps == 13:
            yield "max_steps: 13 brings bad luck; use 12"


@pytest.fixture
def load(tmp_path):
    """Loads a text, laid over the one required value, with overrides."""

    def load(text: str = "", *overrides: str) -> Config:
        path = tmp_path / "config.yaml"
        path.write_text(text if "student:" in text else f"student: {{path: s}}\n{text}")
        return load_config(Config, path, overrides)

    return load


def problems_of(load, *arguments: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(*arguments)
    return list(map(str, caught.value.problems))


def test_a_list_of_sections_is_filled_and_checked_item_by_item(load):
    assert load("others: [{path: a}, {path: b}]").others == [Model(Path("a")), Model(Path("b"))]
    assert load("others: [{path: a}]", "others.0.path=c").others == [Model(Path("c"))]
    assert load("others: []").others == []
    found = problems_of(load, "others: [{path: a, pth: b}, 7, {}]")
    assert found[0].startswith("others[0].pth: unknown key")
    assert found[1] == "others[1]: 7 is not a section of keys and values"
    assert found[2].startswith("others[2].path: missing")
    sources = ", ".join(f"source_{i}: {{path: a/long/path/to/{i}}}" for i in range(5))
    [line] = problems_of(load, f"others: {{{sources}}}")
    named = "a section of source_0, source_1, source_2, source_3 and more"
    assert line == f"others: {named} is not a list, each a section of keys and values"


def test_defaults(load):
    assert load() == Config(student=Model(Path("s")))


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("lr: 1e-5", "lr", 1e-5),
        ("lr: 1", "lr", 1.0),
        ("betas: [0, 1]", "betas", (0.0, 1.0)),
        ("files: [a, b/c]", "files", [Path("a"), Path("b/c")]),
        ("max_steps: null", "max_steps", None),
        ("max_steps: 3", "max_steps", 3),
        ("shuffle: no", "shuffle", False),
        ("name: 3", "name", "3"),
        ("parameters: {low: -0.5}", "parameters", {"k": 1.0, "low": -0.5}),
        ("teacher: {path: t, dtype: bfloat16}", "teacher", Teacher(Path("t"), "bfloat16", 1.0)),
        ("name: ${student.dtype}-${lr}", "name", "float32-1e-06"),
        ("lr: ${betas.0}", "lr", 0.9),
    ],
)
def test_values_take_the_type_of_their_field(load, text, key, value):
    read = getattr(load(text), key)
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize("text", ["lr: 1e-5", "lr: 1E-5", "lr: 1.0e-5", "lr: .00001"])
def test_numbers_in_components_are_numbers(load, text):
    assert load(f"optimizer: {{{text}}}").optimizer["lr"] == 1e-5


def test_shipped_file(load):
    shipped = next(path for path in sorted(catalog.CONFIGS.rglob("*")) if path.is_file())
    name = shipped.relative_to(catalog.CONFIGS).as_posix()
    assert load(f"files: ['${{shipped:{name}}}']").files == [shipped]


@pytest.mark.parametrize(
    ("text", "overrides", "optimizer"),
    [
        # Without its _component_ a section changes arguments of the default, with it, it stands for itself.
        ("optimizer: {lr: 1e-3}", (), {"_component_": "torch.optim.AdamW", "lr": 1e-3, "weight_decay": 0.0}),
        ("optimizer: {_component_: torch.optim.AdamW}", (), {"_component_": "torch.optim.AdamW"}),
        ("", ("optimizer.lr=1e-3",), {"_component_": "torch.optim.AdamW", "lr": 1e-3, "weight_decay": 0.0}),
        ("", ("~optimizer.lr",), {"_component_": "torch.optim.AdamW", "weight_decay": 0.0}),
        ("", ("optimizer={_component_: torch.optim.SGD}",), {"_component_": "torch.optim.SGD"}),
        # The shorthand keeps the arguments that the new callable has: Adafactor has no betas.
        (
            "optimizer: {_component_: torch.optim.AdamW, lr: 1e-3, betas: [0.9, 0.99]}",
            ("optimizer=torch.optim.Adafactor", "optimizer.d=2.0"),
            {"_component_": "torch.optim.Adafactor", "lr": 1e-3, "d": 2.0},
        ),
    ],
)
def test_components(load, text, overrides, optimizer):
    assert load(text, *overrides).optimizer == optimizer


def test_shorthand_in_an_empty_place_and_in_a_component(load):
    loaded = load("", "logger=builtins.dict", "logger.inner={_component_: torch.nn.ReLU}", "logger.inner=torch.nn.SiLU")
    assert loaded.logger == {"_component_": "builtins.dict", "inner": {"_component_": "torch.nn.SiLU"}}


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("lr=2e-5", "lr", 2e-5),
        ("name=a=b", "name", "a=b"),
        ("files=[a,b]", "files", [Path("a"), Path("b")]),
        ("~files", "files", []),
        ("teacher.path=t", "teacher", Teacher(Path("t"))),
        ("teacher={path: t, temperature: 2}", "teacher", Teacher(Path("t"), temperature=2.0)),
        ("teacher=null", "teacher", None),
        ("parameters.k=${lr}", "parameters", {"k": 1e-6, "low": 1}),
        ("betas.0=0.5", "betas", (0.5, 0.99)),
    ],
)
def test_overrides(load, override, key, value):
    text = "files: [x]\nparameters: {low: 1}\nbetas: [0.9, 0.99]\n"
    assert getattr(load(text, override), key) == value


def test_override_with_nothing_is_null(load):
    assert load("max_steps: 3", "max_steps=").max_steps is None
    assert problems_of(load, "", "name=") == ["name: null is not a string"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("shuffle: 2", "shuffle: 2 is not true or false"),
        ("name: ''", "name: '' is blank; give a string"),
        ("student: {path: ' '}", "student.path: ' ' is blank; give a path"),
        ("optimizer: {betas: high}", "optimizer.betas: 'high' is not a list of 2 (a number, a number), which "),
        ("optimizer: {betas: {'0': 0.5}}", "optimizer.betas: {'0': 0.5} is not a list of 2 (a number, a number), "),
        ("logger: {_component_: torch.nn.L1Loss, reduction: 3}", "logger.reduction: 3 is not a string, which torch.nn"),
        ("max_steps: ${nowhere}", "max_steps: '${nowhere}' cannot be resolved: there is no key nowhere; check the "),
        ("max_steps: ${..a}", "max_steps: '${..a}' cannot be resolved: there is no key "),
        ("max_steps: ${max_steps}", "max_steps: '${max_steps}' cannot be resolved: it leads back to itself; give a "),
        ("max_steps: ${oc.env:NOWHERE_AT_ALL}", "max_steps: '${oc.env:NOWHERE_AT_ALL}' cannot be resolved: the "),
        ("max_steps: ${nothing:1}", "max_steps: '${nothing:1}' cannot be resolved: there is no ${nothing:...}; use "),
        ("name: ${shipped:}", "name: '${shipped:}' cannot be resolved: no file  is shipped; known: "),
        ("name: ${shipped:a,1}", "name: '${shipped:a,1}' cannot be resolved: no file a,1 is shipped; known: "),
    ],
)
def test_what_nobody_means_is_told_in_plain_words(load, text, said):
    (problem,) = problems_of(load, text)
    assert problem.startswith(said)


@pytest.mark.parametrize(("hint", "default"), [(int, "a"), (complex, 1j), ("Nowhere", 3)])
def test_a_field_of_an_own_recipe_that_no_file_can_hold(hint, default):
    with pytest.raises(PrefkdError, match=r"^the Config of the recipe: .*; change its type or its default$"):
        load_config(make_dataclass("Own", [("x", hint, field(default=default))]), {})


@pytest.mark.parametrize("value", ["!!int x", "9" * 5000, "\udcff.jsonl"])
def test_an_override_that_python_cannot_read(load, value):
    (problem,) = problems_of(load, "", f"name={value}")
    assert problem.startswith("name: ") and problem.endswith(
        "cannot be read; write a shorter number, or a name in UTF-8"
    )


def test_a_line_break_in_a_value_makes_no_second_line(load):
    with pytest.raises(ConfigError) as caught:
        load('shuffle: "a\\nb"\n"c\\nd": 1')
    assert len(str(caught.value).splitlines()) == 2


def test_a_path_that_the_system_refuses_is_a_problem_of_its_setting(load):
    """One that is too long, or in a folder that may not be looked into."""
    (problem,) = problems_of(load, f"student: {{path: {'x' * 300}}}")
    assert problem == f"student.path: {'x' * 300}: file name too long; use a shorter name"


def test_later_overrides_win(load):
    assert load("lr: 1", "lr=2", "lr=3").lr == 3


def test_saved_config_loads_as_the_same(load, tmp_path):
    loaded = load(
        "teacher: {path: t}\nfiles: [a, b]\nbetas: [0.1, 0.2]\nname: '1e-5'\nlr: 1e-5\n", "~optimizer.weight_decay"
    )
    save_config(loaded, tmp_path / "saved.yaml")
    assert load_config(Config, tmp_path / "saved.yaml") == loaded


class TestProblems:
    def test_of_the_config_and_its_sections(self, load):
        assert problems_of(load, "student: {path: broken}\nteacher: {path: broken}\nmax_steps: 13") == [
            "student.path: broken; mend it",
            "teacher.path: broken; mend it",
            "max_steps: 13 brings bad luck; use 12",
        ]

    def test_are_asked_of_a_section_although_another_has_unusable_values(self, load):
        assert problems_of(load, "student: {path: broken}\nteacher: {dtype: float16}\nmax_steps: 13") == [
            "teacher.dtype: 'float16' is not one of float32, bfloat16",
            "teacher.path: missing; give a path",
            "student.path: broken; mend it",
        ]

    def test_are_asked_of_all_although_a_key_is_unknown(self, load):
        assert problems_of(load, "student: {path: broken}\nmax_step: 3\nmax_steps: 13") == [
            "max_step: unknown key; did you mean max_steps?",
            "student.path: broken; mend it",
            "max_steps: 13 brings bad luck; use 12",
        ]
