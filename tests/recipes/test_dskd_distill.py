"""The recipe through the command line on tiny models: every term of an objective, and how they go together."""

import math
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefkd.models import frozen as frozen_module
from prefkd.models.load import ModelConfig
from prefkd.training.projectors import ProjectorConfig, make_projectors
from tests.processes import run_processes
from tests.recipes import two_models
from tests.recipes.two_models import assert_same_metrics, assert_same_run, make_world, read_rows, score, weights
from tests.tiny import make_model

TERM = "_component_: prefkd.training.terms"
run = partial(two_models.run, "dskd_distill")


def objective(*terms: str) -> str:
    """An override with some terms, each its name and settings."""
    items = (f"{{{TERM}.{name}{', ' if settings else ''}{settings}}}" for name, _, settings in map(split, terms))
    return f"objective=[{', '.join(items)}]"


def split(term: str) -> tuple[str, str, str]:
    return term.partition(" ")


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = make_world(tmp_path_factory.mktemp("world"))
    make_model(folder / "positive", "llama", "byte_level", seed=5)
    return folder


@pytest.fixture(scope="module")
def everything(world) -> str:
    """An objective with every term that two vocabularies allow."""
    return objective(
        "dpo", "ipo", "tis_dpo label_smoothing: 0.1", "cross_entropy answers: both",
        "dual_space answers: both, weight: 0.5",
        "uld", "min_ed", "alm answers: both, temperature: 10.0",
        "dual_space divergence: reverse_kl, answers: rejected",
        "shared_tokens", "gold answers: both, beta: 0.3", "x_token temperature: 2.0", "x_token form: h_kl",
        "align_distil", "dckd", "adpa", "tvkd", "pad", "distillm2", "preference loss: hinge_loss", "uld align: parent",
    )  # fmt: skip


# At so small a rate random models stay comparable over three steps of so many losses.
SLOWLY = ("optimizer.lr=1e-3", "projectors.warmup_steps=2")
AT_ONCE = "lr_schedule.num_warmup_steps=0"


@pytest.fixture(scope="module")
def plain(world, everything, tmp_path_factory) -> tuple[Path, list[dict]]:
    """The run that the others are compared with."""
    out = tmp_path_factory.mktemp("runs") / "plain"
    return out, run(world, out, everything, *SLOWLY)


def test_every_term_is_logged(plain):
    out, metrics = plain
    assert [line["step"] for line in metrics] == [0, 1, 2, 3]
    assert all(math.isfinite(value) for line in metrics for value in line.values())
    names = {"dpo", "ipo", "tis_dpo", "cross_entropy", "dual_space", "uld", "min_ed", "alm", "dual_space 2",
             "shared_tokens", "gold", "x_token", "x_token 2",
             "align_distil", "dckd", "adpa", "tvkd", "pad", "distillm2", "preference", "uld 2"}  # fmt: skip
    parts = {
        "t2s_ce",
        "t2s_kd",
        "s2t_kd",
        "t2s_accuracy",
        "s2t_accuracy",
        "dual_space 2 t2s_ce",
        "margin",
        "ipo margin",
        "one_token_parents",
        "student_shared_mass",
        "gold teacher_shared_mass",
    }
    assert names | parts <= metrics[1].keys()
    weight = dict.fromkeys(names, 1.0) | {"dual_space": 0.5}
    for line, prefix in ((metrics[0], "held_out/"), (metrics[3], "")):
        total = sum(weight[name] * line[f"{prefix}{name}"] for name in names)
        assert line[f"{prefix}loss"] == pytest.approx(total, rel=1e-5)
    warm_up = 0.5 * metrics[2]["t2s_ce"] + metrics[2]["dual_space 2 t2s_ce"]
    assert metrics[2]["loss"] == pytest.approx(warm_up, rel=1e-5)
    assert AutoModelForCausalLM.from_pretrained(out / "student").config.vocab_size


@pytest.mark.parametrize(
    "override",
    ["training.microbatch_size=1", "training.microbatch_size=3", "student.share_prompt=false", "training.chunk_size=3",
     "teacher.share_prompt=false", "training.activation_checkpointing=full"],
)  # fmt: skip
def test_how_a_batch_is_computed_changes_nothing(world, everything, plain, tmp_path, override):
    out = tmp_path / "out"
    assert_same(plain, (out, run(world, out, everything, *SLOWLY, override)))


def test_two_processes_are_one(world, everything, plain, tmp_path):
    out = tmp_path / "out"
    settings = (everything, *SLOWLY, "training.microbatch_size=2")
    two, _ = run_processes(lambda: run(world, out, *settings))
    assert_same(plain, (out, two))


def assert_same(one: tuple[Path, list[dict]], other: tuple[Path, list[dict]]) -> None:
    assert_same_run(one, other, 3e-5)
    projectors = (load_file(out / "projectors.safetensors") for out, _ in (one, other))
    torch.testing.assert_close(*projectors, rtol=3e-5, atol=3e-5)


def test_terms_of_one_vocabulary(tmp_path):
    """A smaller student with the teacher's tokenizer; the invariances, and a student that is its own teacher."""
    world = make_world(tmp_path / "world")
    make_model(world / "student", "llama", "byte_level", seed=3, hidden_size=16)
    settings = (
        objective("same_vocabulary divergence: adaptive_kl", "same_vocabulary_dual_space answers: both"),
        *SLOWLY,
    )
    whole = tmp_path / "whole", run(world, tmp_path / "whole", *settings)
    parts = tmp_path / "parts", run(world, tmp_path / "parts", *settings, "training.microbatch_size=3",
                                    "training.chunk_size=5", "student.share_prompt=false")  # fmt: skip
    assert_same(whole, parts)
    assert whole[1][0]["held_out/same_vocabulary"] > 0.1

    own = run(world, tmp_path / "own", objective("same_vocabulary"), f"teacher.path={world}/student", *SLOWLY[:1])
    assert own[0]["held_out/loss"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("term", "recipe", "settings"),
    [
        ("tis_dpo", "tis_dpo_distill", ()),
        ("dpo", "dpo_distill", ()),
        ("dpo", "dpo_distill", ("reference=student", "refresh={every: 1}", AT_ONCE)),
    ],
)
def test_one_preference_term_is_the_recipe_of_that_name(world, tmp_path, term, recipe, settings):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    one = run(world, ours, objective(term), "training.max_steps=2", *settings)
    other = two_models.run(recipe, world, theirs, "training.max_steps=2", *settings)
    common = one[0].keys() & other[0].keys() | one[1].keys() & other[1].keys()
    assert {"held_out/loss", "margin", "gradient_norm"} <= common
    kept = [[{name: line[name] for name in line.keys() & common} for line in lines] for lines in (one, other)]
    assert_same_metrics(*kept, 1e-6)
    for left, right in zip(weights(ours).values(), weights(theirs).values(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-6, atol=1e-6)


def test_the_default_objective_from_whole_logits(world, tmp_path):
    """Cross-entropy and dual-space terms of one step, once more from their formulas, without anything of prefkd."""
    run(world, tmp_path / "out", "training.max_steps=1", "training.batch_size=12", "training.microbatch_size=5")
    metrics = two_models.read_rows(tmp_path / "out" / "metrics.jsonl")[1]
    sides = [ModelConfig(str(world / name)) for name in ("student", "teacher")]
    projectors = make_projectors(ProjectorConfig(), *sides, seed=0, device=torch.device("cpu"))
    sums, tokens = torch.zeros(4), 0
    with torch.no_grad():
        for row in read_rows(world / "pairs.jsonl"):
            student = reading(world / "student", f"User:\n{row['prompt']}\n\nAssistant:\n", row["chosen"])
            teacher = reading(world / "teacher", f"<|user|>{row['prompt']}<|end|><|assistant|>", row["chosen"])
            sums += torch.stack(dual_space_terms(projectors, student, teacher))
            tokens += len(student["y"])
    expected = dict(zip(("cross_entropy", "t2s_ce", "t2s_kd", "s2t_kd"), (sums / tokens).tolist(), strict=True))
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, rel=1e-4)


def reading(folder: Path, before: str, answer: str) -> dict[str, torch.Tensor]:
    """What a model says of an answer: x, y (n,), hidden states h (n, H), logits z (n, V), embedding E (V, H)."""
    tokenizer, lm = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    start = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []
    prompt, text = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in (before, answer))
    ids = torch.tensor([*start, *prompt, *text, tokenizer.eos_token_id])
    seen = slice(len(start) + len(prompt) - 1, len(ids) - 1)
    out = lm(ids[None], output_hidden_states=True)
    table = lm.get_input_embeddings().weight
    return {"x": ids[seen], "y": ids[len(ids) - len(text) - 1 :], "h": out.hidden_states[-1][0, seen],
            "z": out.logits[0, seen], "E": table}  # fmt: skip


def dual_space_terms(projectors, student, teacher) -> list[torch.Tensor]:
    """Cross-entropy, t2s_ce, t2s_kd and s2t_kd of one answer; the models' heads are their embeddings."""

    def kl(other: torch.Tensor, model: torch.Tensor) -> torch.Tensor:
        return F.kl_div((model / 2).log_softmax(-1), (other / 2).log_softmax(-1), log_target=True, reduction="none")

    query = torch.cat([student["E"][student["x"]], student["E"][student["y"]]], -1)
    key = torch.cat([teacher["E"][teacher["x"]], teacher["E"][teacher["y"]]], -1)
    target = teacher["E"][teacher["y"]]
    scores = projectors.query(query) @ (key / key.std()).T / math.sqrt(key.shape[-1])
    seen = scores.softmax(-1) @ projectors.t2s(teacher["h"] / teacher["h"].std() + target / target.std())
    t2s = seen @ student["E"].T
    hits = t2s.argmax(-1) == student["y"]
    s2t = scores.T.softmax(-1) @ projectors.s2t(student["h"]) @ teacher["E"].T
    return [
        F.cross_entropy(student["z"], student["y"], reduction="sum"),
        F.cross_entropy(t2s, student["y"], reduction="sum"),
        (kl(t2s, student["z"]).sum(-1) * hits).sum(),
        kl(teacher["z"], s2t).sum(),
    ]


def test_projectors_learn_and_are_read_again(world, tmp_path):
    """With plain SGD a weight changes if and only if its gradient is not 0."""
    sides = [ModelConfig(str(world / name)) for name in ("student", "teacher")]
    start = make_projectors(ProjectorConfig(), *sides, seed=0, device=torch.device("cpu")).state_dict()
    run(world, tmp_path / "one", objective("dual_space"), "training.max_steps=1", AT_ONCE)
    learned = load_file(tmp_path / "one" / "projectors.safetensors")
    assert learned.keys() == start.keys()
    assert not any(torch.equal(learned[name], value) for name, value in start.items())

    path = tmp_path / "one" / "projectors.safetensors"
    again = (f"projectors.path={path}", "projectors.lr=1e-30", "training.max_steps=1", AT_ONCE)
    run(world, tmp_path / "two", objective("dual_space"), *again)
    torch.testing.assert_close(load_file(tmp_path / "two" / "projectors.safetensors"), learned, rtol=0, atol=0)


def test_warming_up_leaves_the_student_alone(world, tmp_path):
    run(world, tmp_path / "out", "training.max_steps=1", "projectors.warmup_steps=1", AT_ONCE)
    student = load_file(world / "student" / "model.safetensors")
    assert all(torch.equal(student[name], value) for name, value in weights(tmp_path / "out").items())
    sides = [ModelConfig(str(world / name)) for name in ("student", "teacher")]
    learned = load_file(tmp_path / "out" / "projectors.safetensors")
    start = make_projectors(ProjectorConfig(), *sides, seed=0, device=torch.device("cpu")).state_dict()
    changed = {name.partition(".")[0] for name, value in start.items() if not torch.equal(learned[name], value)}
    assert changed == {"query", "t2s"}


@pytest.fixture(scope="module")
def exact(world, tmp_path_factory) -> tuple[Path, list[dict]]:
    """A run with the projectors of DSKD v2, which start where the heads agree."""
    out = tmp_path_factory.mktemp("runs") / "exact"
    return out, run(world, out, EXACT, *SLOWLY)


EXACT = objective("dual_space_v2 answers: both", "cross_entropy")


@pytest.mark.parametrize(
    "override", ["training.microbatch_size=1", "training.chunk_size=3", "student.share_prompt=false"]
)
def test_how_a_batch_of_dual_space_v2_is_computed_changes_nothing(world, exact, tmp_path, override):
    out = tmp_path / "out"
    assert_same(exact, (out, run(world, out, EXACT, *SLOWLY, override)))


def test_two_processes_of_dual_space_v2_are_one(world, exact, tmp_path):
    out = tmp_path / "out"
    two, _ = run_processes(lambda: run(world, out, EXACT, *SLOWLY, "training.microbatch_size=2"))
    assert_same(exact, (out, two))


def test_projectors_of_dual_space_v2_are_read_again(world, exact, tmp_path):
    settings = (EXACT, f"projectors.path={exact[0] / 'projectors.safetensors'}", "training.max_steps=1", AT_ONCE)
    again = run(world, tmp_path / "again", *settings)
    assert again[0]["held_out/t2s_ce"] != pytest.approx(exact[1][0]["held_out/t2s_ce"], rel=1e-6)


def test_projected_teacher_learns_to_hit_the_targets(world, tmp_path):
    settings = ("training.epochs=20", "projectors.lr=1e-2", "optimizer=torch.optim.AdamW", "optimizer.lr=1e-4")
    metrics = run(world, tmp_path / "out", objective("dual_space"), *settings, "training.evaluate_every=60")
    assert metrics[0]["held_out/t2s_accuracy"] < 0.1
    assert metrics[-1]["held_out/t2s_accuracy"] > 0.5
    assert metrics[-1]["held_out/s2t_kd"] < metrics[0]["held_out/s2t_kd"]


def test_scores_beside_a_live_teacher(world, tmp_path, monkeypatch):
    folder = score(world, tmp_path / "score", "microbatch_size=1")
    alone = ("training.microbatch_size=1", "optimizer.lr=1e-3")
    terms = objective("tis_dpo", "dual_space weight: 0.5", "alm")
    cached = (f"teacher.scores={folder}", "weights.contrast=scores", *alone)
    live = tmp_path / "live", run(world, tmp_path / "live", terms, *alone)
    assert_same_run(live, (tmp_path / "both", run(world, tmp_path / "both", terms, *cached)), 3e-5)

    def refuse(*_, **__):
        raise AssertionError("no teacher is loaded")

    monkeypatch.setattr(frozen_module, "load_causal_lm", refuse)
    run(world, tmp_path / "on_scores", objective("tis_dpo", "alm"), *cached, "~teacher.path", "training.max_steps=1")
    run(world, tmp_path / "sft", objective("cross_entropy"), "training.max_steps=1")


def test_pi_plus_and_pi_minus_are_models_of_their_own(world, tmp_path, monkeypatch):
    """By the numbers of these models alone: the teacher itself is neither loaded nor asked."""
    loaded = []
    load = frozen_module.load_causal_lm
    monkeypatch.setattr(
        frozen_module,
        "load_causal_lm",
        lambda config, **how: loaded.append(Path(config.path).name) or load(config, **how),
    )
    models = tuple(text.replace("{world}", str(world)) for text in (*MODELS, "contrast.negative.dtype=float32"))
    settings = (*models, "contrast.positive.dtype=float32", "training.max_steps=1", AT_ONCE)
    metrics = run(world, tmp_path / "out", objective("align_distil", "dckd"), *settings)
    assert loaded == ["positive", "teacher"]
    alone = run(world, tmp_path / "alone", objective("dckd"), *settings)
    assert loaded[2:] == ["positive"]  # what pi- says is not asked
    assert alone[0]["held_out/dckd"] == pytest.approx(metrics[0]["held_out/dckd"], rel=1e-6)
    teacher = run(world, tmp_path / "teacher", objective("shared_tokens answers: both"), "training.max_steps=1",
                  f"teacher.path={world}/positive", AT_ONCE)  # fmt: skip
    assert alone[0]["held_out/dckd"] == pytest.approx(teacher[0]["held_out/shared_tokens"], rel=1e-6)


def test_a_contrast_of_another_tokenizer_is_refused(world, tmp_path, capsys):
    models = (
        "contrast.kind=models",
        f"contrast.positive.path={world}/student",
        f"contrast.negative.path={world}/teacher",
    )
    run(world, tmp_path / "out", objective("adpa"), *models, code=2)
    (line,) = errors(capsys)
    assert line.startswith("contrast.positive: ") and line.endswith("name a model of the teacher's family")


def test_students_own_start_as_reference(world, tmp_path):
    metrics = run(
        world, tmp_path / "out", objective("dpo", "alm weight: 0.0"), "reference=student", "training.max_steps=1"
    )
    assert metrics[0]["held_out/loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert metrics[0]["held_out/alm"] > 0


def test_a_term_of_ones_own(world, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    Path("my_terms.py").write_text(
        "from prefkd.training.signals import Signals, term\n\n"
        "@term(unit='token')\n"
        "def confidence(signals: Signals, power: float = 1.0):\n"
        "    return signals.parent_sums(signals.policy.exp() ** power)\n\n"
        "@term()\n"
        "def forgot_its_needs(signals: Signals):\n"
        "    return (signals.policy - signals.reference).sum((0, 2))\n\n"
        "def one_number(signals: Signals):\n"
        "    return signals.policy.sum()\n"
    )
    metrics = run(world, tmp_path / "out", "objective=[{_component_: my_terms.confidence, power: 0.5}]",
                  "training.max_steps=1")  # fmt: skip
    assert 0 < metrics[1]["confidence"] == metrics[1]["loss"]
    capsys.readouterr()
    wrong = "objective=[{_component_: my_terms.forgot_its_needs}, {_component_: my_terms.one_number}]"
    run(world, tmp_path / "wrong", wrong, code=2)
    first, second = errors(capsys)
    assert first.startswith("objective[0]: my_terms.forgot_its_needs fails on a pair of one token (TypeError: ")
    assert second == (
        "objective[1]: my_terms.one_number returns a tensor of shape (), but must return a value for each pair, (B,)"
    )


def errors(capsys) -> list[str]:
    return [line.removeprefix("error: ") for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]


MODELS = ("contrast.kind=models", "contrast.positive.path={world}/positive", "contrast.negative.path={world}/teacher")
DUAL = "prefkd.training.terms.dual_space"
MISTAKES = {
    ("objective=[]",): "objective: no term has a weight above 0, so nothing would be learned; give one",
    ("objective=tis_dpo",): "objective: 'tis_dpo' is not a list, each a component, a section with _component_: "
    "dotted.path",
    ("objective=[{beta: 0.1}]",): "objective[0]._component_: missing; give the dotted path of a class or a function",
    (objective("dual_spaec"),): "objective[0]._component_: prefkd.training.terms.dual_spaec: "
    "prefkd.training.terms has no dual_spaec; did you mean dual_space?",
    (objective("dual_space temprature: 2.0"),): f"objective[0].temprature: {DUAL} has no such argument; "
    "did you mean temperature?",
    (objective("dual_space wieght: 2.0"),): f"objective[0].wieght: {DUAL} has no such argument; did you mean weight?",
    (objective("dual_space temperature: warm"),): f"objective[0].temperature: 'warm' is not a number, which {DUAL} "
    "asks for",
    (objective("dual_space temperature: 0.0"),): "objective[0]: temperature is 0.0, but must be above 0",
    (objective("dual_space temperature: .inf"),): "objective[0].temperature: inf is not a number to compute with; "
    "use a finite one",
    (objective("pad beta: -1.0"),): "objective[0]: beta is -1.0, but must be above 0, below which a loss teaches the "
    "opposite",
    (objective("dual_space divergence: kl"),): "objective[0]: no divergence is called 'kl'; there are forward_kl, "
    "reverse_kl, adaptive_kl, skewed_forward_kl, skewed_reverse_kl, js_divergence",
    (objective("dual_space answers: left"),): "objective[0].answers: 'left' is not one of chosen, rejected, both",
    (objective("dual_space weight: much"),): "objective[0].weight: 'much' is not a number",
    (objective("dual_space signals: 1"),): f"objective[0].signals: the recipe itself passes it to {DUAL}; remove it",
    (objective("tis_dpo", "dual_space weight: -1.0"),): "objective[1].weight: -1.0 is negative, which teaches the "
    "opposite; use 0 to log a term without learning it",
    (objective("dpo answers: chosen"),): "objective[0].answers: prefkd.training.terms.dpo compares both "
    "answers; remove it",
    (objective("shared_tokens form: lump"),): "objective[0].form: 'lump' is not one of lumped, renormalised, "
    "which prefkd.training.terms.shared_tokens asks for",
    (objective("shared_tokens divergence: kl"),): "objective[0]: no divergence is called 'kl'; there are forward_kl, "
    "reverse_kl, adaptive_kl, skewed_forward_kl, skewed_reverse_kl, js_divergence",
    (objective("gold beta: 2.0"),): "objective[0]: beta is 2.0, but must lie in 0..1",
    (objective("gold shared_weight: -0.5"),): "objective[0]: shared_weight is -0.5, but must lie in 0..1",
    (objective("x_token temperature: 0.0"),): "objective[0]: temperature is 0.0, but must be above 0",
    (objective("x_token form: h_kl, largest: 0"),): "objective[0]: largest is 0, but must be at least 1",
    (objective("gold"), "~teacher.path", "teacher.scores={scores}"): "teacher.path: missing, but the objective asks "
    "for hidden states, which these scores do not have; add the model, or score with keep.states: true",
    (objective("uld"), "~teacher.path", "teacher.scores={scores}"): "teacher.path: missing, but the objective asks for "
    "hidden states, which these scores do not have; add the model, or score with keep.states: true",
    (objective("dpo", "alm"), "~teacher.path", "teacher.scores={scores}", "reference=student"): "teacher.path: "
    "missing, but the objective asks for log-probs of the teacher besides the student's own start, which scores do not "
    "give; add the model",
    (objective("dpo"), "teacher.scores={scores}"): "teacher.path: conflicts with scores, since nothing is asked "
    "of a model; remove it (~teacher.path)",
    (objective("tis_dpo", "uld"), "teacher.scores={scores}"): "weights.contrast: prompt_pair needs a model in memory; "
    "use scores (whichever contrast was scored) or uniform",
    (objective("dpo"), "projectors.warmup_steps=3"): "projectors.warmup_steps: no term of the objective has "
    "projectors; add dual_space, or use 0",
    (objective("dpo"), "refresh={}"): "refresh: the teacher is the reference, and does not learn; set reference: "
    "student, or remove it",
    (objective("uld"), "refresh={}", "reference=student"): "refresh: no term of the objective compares with a "
    "reference; remove it",
    (objective("dpo"), "refresh={}", "reference=student", "training.keep_best=loss"): "refresh: held-out metrics "
    "against another reference cannot be compared; remove training.keep_best",
    (objective("adpa"), "contrast.kind=none"): "contrast.kind: none, but the objective asks for pi+ and pi-; use "
    "prompts or models",
    (objective("dckd"), "~teacher.path", "teacher.scores={scores}"): "contrast.kind: prompts needs a teacher in memory "
    "to be pi+, of which the scores keep nothing; use models, remove scores, or score with keep.models",
    (objective("dpo"), *MODELS): "contrast: no term of the objective compares with pi+ or pi-; add align_distil, or "
    "remove it",
    (objective("tis_dpo", "tvkd"), *MODELS): "weights.contrast: prompt_pair conflicts with contrast.kind: models; use "
    "scores or uniform",
    (objective("tis_dpo", "tvkd"), "contrast.positive_prompt='{prompt} Be kind.'"): "contrast: its instructions are "
    "not those of weights; give both the same",
    (objective("preference loss: nca_loss"),): "objective[0].loss: nca_loss looks at each answer apart, and the "
    "teacher as reference shifts both by tens of nats; set reference: student, or use recipe dpo_distill with "
    "centre: true",
    (objective("preference loss: cpo_loss"),): "objective[0]: cpo_loss compares with no reference; use recipe dpo",
    (objective("dual_space", "dual_space_v2"),): "objective: dual_space and dual_space_v2 have projectors of two "
    "kinds; use one of the two",
    (objective("align_distil beta: 0.0"),): "objective[0]: beta is 0.0, but must be above 0, below which a loss "
    "teaches the opposite",
    (objective("distillm2 skew: 1.0"),): "objective[0]: skew is 1.0, but must lie between 0 and 1",
    (objective("pad form: jsd"),): "objective[0].form: 'jsd' is not one of published, js, ranking, which "
    "prefkd.training.terms.pad asks for",
    ("projectors.lr=0.0",): "projectors.lr: 0.0 would stop the projectors from learning; use a positive number, for "
    "example 1e-3",
    ("projectors.path=no.file",): "projectors.path: no.file does not exist; name the projectors.safetensors of an "
    "earlier run",
}  # fmt: skip


@pytest.fixture(scope="module")
def scores(world, tmp_path_factory) -> Path:
    return score(world, tmp_path_factory.mktemp("runs") / "score")


@pytest.mark.parametrize("overrides", MISTAKES, ids=lambda overrides: overrides[0].replace(f"{TERM}.", ""))
def test_mistakes_are_one_line(world, scores, tmp_path, capsys, overrides):
    expected, places = MISTAKES[overrides], {"{scores}": scores, "{world}": world}
    for name, place in places.items():
        overrides = tuple(text.replace(name, str(place)) for text in overrides)
    run(world, tmp_path / "out", *overrides, code=2)
    assert errors(capsys) == [expected]
    assert not (tmp_path / "out").exists()


def test_one_vocabulary_is_demanded_before_a_model_loads(world, tmp_path, capsys):
    run(world, tmp_path / "out", objective("same_vocabulary", "same_vocabulary_dual_space"), code=2)
    lines = errors(capsys)
    assert len(lines) == 2
    assert lines[0].startswith("objective[0]: prefkd.training.terms.same_vocabulary needs models of one vocabulary")


def test_several_mistakes_are_told_at_once(world, tmp_path, capsys):
    wrong = (objective("dual_space temprature: 2.0", "tis_dpo beta: -1.0"), "projectors.lr=0.0", "training.epochs=0")
    run(world, tmp_path / "out", *wrong, code=2)
    keys = [line.partition(":")[0] for line in errors(capsys)]
    assert sorted(keys) == ["objective[0].temprature", "objective[1]", "projectors.lr", "training.epochs"]


def test_projectors_of_other_models_are_refused(world, plain, tmp_path, capsys):
    make_model(tmp_path / "student", "qwen2", "metaspace", seed=1, hidden_size=16)
    other = (f"projectors.path={plain[0]}/projectors.safetensors", f"student.path={tmp_path}/student")
    run(world, tmp_path / "out", objective("dual_space"), *other, code=2)
    (line,) = errors(capsys)
    assert "holds no projectors of these two models" in line
