"""`prefkd new`: a config for one's own pair that is sound, fits and says why."""

import json
from pathlib import Path

import pytest

from prefkd.cli.main import main
from prefkd.config import read_yaml
from tests.tiny import make_model, write_pairs


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    make_model(folder / "student", "qwen2", "byte_level")
    make_model(folder / "teacher", "llama", "metaspace")
    write_pairs(folder / "pairs.jsonl", 24)
    return folder


@pytest.fixture
def new(world, monkeypatch):
    """Runs `prefkd new` in the folder with the models; returns the file's keys."""

    def run(*arguments: str, code: int = 0, **options: str) -> dict:
        Path("mine.yaml").unlink(missing_ok=True)
        given = {"student": "student", "teacher": "teacher", "data": "pairs.jsonl"} | options
        words = [word for name, value in given.items() for word in (f"--{name}", value)]
        assert main(["new", *words, *arguments]) == code
        return {} if code else read_yaml(Path("mine.yaml"))

    monkeypatch.chdir(world)
    return run


def test_the_file_runs_and_says_what_was_chosen(new, capsys):
    keys = new()
    said, text = capsys.readouterr().out, Path("mine.yaml").read_text()
    assert keys["weights"]["contrast"] == "uniform"  # the teacher has no chat template
    assert keys["data"]["max_length"] % 64 == 0 and keys["data"]["max_prompt_length"] * 2 <= keys["data"]["max_length"]
    assert keys["training"]["precision"] == "float32" and keys["optimizer"]["lr"] == pytest.approx(1e-5)
    for what in (
        "data.max_length",
        "vocabularies",
        "weights.contrast",
        "training.batch_size",
        "microbatch_size",
        "optimizer.lr",
    ):
        assert f"{what}: " in said
        assert f"#   {what}: " in text
    assert not {"base", "values"} & keys.keys()
    assert main(["validate", "mine.yaml"]) == 0
    assert main(["run", "mine.yaml", "training.max_steps=1", "training.evaluate_every=1", "output_dir=out"]) == 0
    assert json.loads(Path("out/metrics.jsonl").read_text().splitlines()[-1])["step"] == 1


def test_an_instruct_teacher_and_one_vocabulary(new):
    keys = new("--recipe", "dskd_distill", teacher="student")
    assert keys["weights"]["contrast"] == "prompt_pair"
    assert keys["objective"][-1]["_component_"].endswith(".same_vocabulary")


@pytest.mark.parametrize("recipe", ["score", "dpo"])
def test_other_recipes(recipe, new):
    keys = new("--recipe", recipe, "--gpu", "H100")
    assert keys["recipe"] == recipe
    assert keys.get("training", {"precision": "bfloat16"})["precision"] == "bfloat16"
    assert main(["validate", "mine.yaml"]) == 0


def test_what_fits_nowhere_is_said(new, capsys):
    keys = new("--gpu", "0.0001")
    assert keys["training"]["microbatch_size"] == 1 and keys["training"]["activation_checkpointing"] == "full"
    assert keys["student"]["quantization"] == keys["teacher"]["quantization"] == "nf4" and keys["lora"]
    assert "microbatch_size: 1, and still 0.0 GiB, more than a GPU" in capsys.readouterr().out


def test_adapters_are_chosen_where_all_weights_do_not_fit(new, tmp_path, capsys):
    """A student whose optimizer is what needs memory, on a card between the two."""
    sizes = {"hidden_size": 512, "intermediate_size": 8192, "head_dim": 128, "num_hidden_layers": 1}
    make_model(tmp_path / "large", "qwen2", "byte_level", **sizes)
    keys = new("--recipe", "dpo_distill", student=str(tmp_path / "large"), gpu="0.93")
    # Ten times the rate of a small student.
    assert keys["lora"]["rank"] == 16 and keys["optimizer"]["lr"] == pytest.approx(1e-4)
    assert "lora: adapters learn" in capsys.readouterr().out
    assert main(["plan", "mine.yaml", "--gpu", "0.93", "--json", str(tmp_path / "plan.json")]) == 0
    assert json.loads((tmp_path / "plan.json").read_text())["fits"]
    assert main(["validate", "mine.yaml"]) == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"recipe": "tis_dpo"},
            "--recipe tis_dpo is not one that this writes a config for; did you mean tis_dpo_distill?",
        ),
        ({"student": "stud"}, "--student: no folder stud"),
        ({"data": "pairs.json"}, "--data: pairs.json does not exist; did you mean pairs.jsonl?"),
        ({"gpu": "H1000"}, "--gpu H1000 is not known; did you mean H100"),
        ({"output": "mine.txt"}, "mine.txt is not a config file; give it the suffix .yaml"),
        ({"output": "pairs.yaml"}, "pairs.yaml already exists; name another file with --output"),
    ],
)
def test_mistakes_are_one_line(new, options, said, capsys):
    Path("pairs.yaml").touch()
    new(code=2, **options)
    problem = capsys.readouterr().err.strip()
    assert said in problem
    assert "\n" not in problem
