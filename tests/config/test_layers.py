"""A config over its base, and several configs in one file."""

import pytest

from prefkd.config import read_layers
from prefkd.errors import ConfigError

PAIR = """
values: {pair: big_to_small, teacher: models/big, pairs: {source: p.jsonl, limit: 4}}
configs:
  one: {base: base.yaml, training: {lr: 1e-4}}
  two:
    recipe: score
    teacher: {path: "${values.teacher}"}
"""
BASE = """
recipe: sft
output_dir: runs/${values.pair}/sft
model: {path: "${values.teacher}", adapter: "${output_dir}/x"}
data: ${values.pairs}
training: {lr: 1e-5, steps: 3}
loss: {_component_: a.b, beta: 0.1}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pair.yaml").write_text(PAIR)
    (tmp_path / "base.yaml").write_text(BASE)
    return tmp_path


def refusal(folder, name: str, text: str) -> str:
    (folder / "mine.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_layers(folder / name)
    return str(caught.value).replace(str(folder), "")


def test_values_stand_in_and_the_rest_is_laid_over(folder):
    assert read_layers(folder / "pair.yaml" / "one") == {
        "recipe": "sft",
        "output_dir": "runs/big_to_small/sft",
        "model": {"path": "models/big", "adapter": "${output_dir}/x"},
        "data": {"source": "p.jsonl", "limit": 4},
        "training": {"lr": 1e-4, "steps": 3},
        "loss": {"_component_": "a.b", "beta": 0.1},
    }
    assert read_layers(folder / "pair.yaml" / "two") == {"recipe": "score", "teacher": {"path": "models/big"}}


def test_a_component_takes_the_place_of_the_base_s(folder):
    (folder / "plain.yaml").write_text("recipe: sft\nloss: {_component_: a.b, beta: 0.1}")
    (folder / "mine.yaml").write_text("base: plain.yaml\nloss: {_component_: c.d}")
    assert read_layers(folder / "mine.yaml") == {"recipe": "sft", "loss": {"_component_": "c.d"}}
    (folder / "mine.yaml").write_text("base: plain.yaml\nloss: {beta: 0.2}")
    assert read_layers(folder / "mine.yaml")["loss"] == {"_component_": "a.b", "beta": 0.2}


def test_a_shipped_config_is_a_base(folder):
    (folder / "mine.yaml").write_text("base: demo/sft\ntraining: {epochs: 2}")
    found = read_layers(folder / "mine.yaml")
    assert found["recipe"] == "sft" and found["training"]["epochs"] == 2 and "batch_size" in found["training"]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("mine.yaml", "base: demo/sfk", "/mine.yaml: base: no config is named demo/sfk; did you mean demo/sft?"),
        ("mine.yaml", "base: basis.yaml", "/mine.yaml: base: no config file basis.yaml"),
        ("mine.yaml", "base: demo/ablations/uld", "uld has a base itself, demo/dskd_distill; name that one"),
        ("mine.yaml", "recipe: dpo\nbase: demo/sft", "base: demo/sft is for recipe sft, and this is for dpo"),
        ("mine.yaml", "base: base.yaml", "values.pair: missing, and its base asks for it"),
        ("pair.yaml", "", "holds several configs; name one of them, as in /pair.yaml/one"),
        ("pair.yaml/ona", "", "holds no config ona; did you mean one?"),
        ("mine.yaml/a", "configs: {a: {x: 1}}\ndata: 3", "data: conflicts with configs; move it into each"),
        ("mine.yaml/a", "values: {pear: x}\nconfigs: {a: {base: base.yaml}}", "values.pair: missing"),
        ("mine.yaml/a", "configs: {a: 3}", "configs.a: 3 is not a section"),
        ("mine.yaml/a", "configs: [a]", "configs: ['a'] is not a section; give each config a name and keys"),
        ("mine.yaml/a", "values: 3\nconfigs: {a: {x: 1}}", "values: 3 is not a section"),
        ("mine.yaml", "configs:", "configs: null is not a section"),
        ("mine.yaml", "base: [demo/sft]", "base: ['demo/sft'] is not the name of a config"),
        ("mine.yaml", "base: ''", "base: '' is not the name of a config"),
        ("mine.yaml", "recipe: sft\nbase: demo/pipeline", "base: demo/pipeline is a pipeline, and this is for recipe"),
        ("mine.yaml", "HF_TOKEN=hf_secret", "/mine.yaml: holds no keys; write `key: value` lines"),
        ("mine.yaml", "x: {~: 1}", "/mine.yaml: x: a key is empty; give it a name, or quote it"),
        ("mine.yaml", "x: !!set {a}", "/mine.yaml: x: value 'set' is not a supported primitive type; write"),
        ("mine.yaml", "x: !!int y", "/mine.yaml: a number or a date in it cannot be read; quote it"),
        ("mine.yaml", f"x: {'9' * 5000}", "/mine.yaml: a number or a date in it cannot be read; quote it"),
        ("mine.yaml", f"x: {'{a: ' * 500}1{'}' * 500}", "/mine.yaml: its sections are nested too deeply"),
        ("mine.yaml", "x: 1\n---\ny: 2", "/mine.yaml, line 2: expected a single document in the stream, but found "),
    ],
)
def test_mistakes_are_one_line(folder, name, text, said):
    problem = refusal(folder, name, text)
    assert said in problem
    assert "\n" not in problem
