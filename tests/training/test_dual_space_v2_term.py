"""The term of DSKD v2: once more from whole matrices, and projectors made of two heads."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

from prefkd.data.vocabulary import Vocabularies
from prefkd.errors import PrefkdError
from prefkd.method.dual_space import DualSpaceProjectors
from prefkd.method.dual_space_v2 import ExactProjectors
from prefkd.models.load import ModelConfig, TeacherConfig, load_causal_lm
from prefkd.training import terms
from prefkd.training.projectors import ProjectorConfig, make_exact_projectors, parameter_groups
from prefkd.training.signals import Signals
from tests.tiny import make_model, make_tokenizer
from tests.training.test_shared_token_terms import ALONE, STUDENT, TEACHER, TOKENIZERS, VOCABULARIES, states

CPU = torch.device("cpu")


@pytest.fixture
def signals() -> Signals:
    torch.manual_seed(0)
    return Signals(
        policy=-torch.ones(2, 2, 3, dtype=torch.float64),
        parent_mask=torch.ones(2, 2, 3, dtype=torch.bool),
        student=states(STUDENT, len(TOKENIZERS[0]), 4, seed=1),
        teacher=states(TEACHER, len(TOKENIZERS[1]), 6, seed=2),
        projectors=ExactProjectors(4, 6).double(),
        vocabularies=VOCABULARIES,
    )


def kl(q: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """KL(q || p) of logits at temperature 2."""
    log_q, log_p = (q / 2).log_softmax(-1), (p / 2).log_softmax(-1)
    return (log_q.exp() * (log_q - log_p)).sum()


def test_the_losses_of_each_pair(signals):
    values, logged = terms.dual_space_v2(signals, only_agreement=False)
    student_head, teacher_head = signals.student.head.detach(), signals.teacher.head.detach()
    own_ids, other_ids = VOCABULARIES.shared
    s2t = torch.linalg.pinv(teacher_head[other_ids]) @ student_head[own_ids]
    for pair in (0, 1):
        student, teacher = (side.answers()[pair].at(torch.tensor([at])) for side, at in
                            zip((signals.student, signals.teacher), ALONE[pair], strict=True))  # fmt: skip
        t2s_logits = signals.projectors.t2s(teacher.hidden.detach()) @ student_head.T
        says = teacher.logits().argmax().item()
        label = dict(zip(other_ids.tolist(), own_ids.tolist(), strict=True)).get(says)
        ce = 0 if label is None else F.cross_entropy(t2s_logits, torch.tensor([label]))
        expected = ce + kl(t2s_logits.detach(), student.logits())
        expected = expected + kl(teacher.logits().detach(), student.hidden @ s2t.T @ teacher_head.T)
        torch.testing.assert_close(values[pair], expected, rtol=1e-4, atol=1e-5)
        assert logged["t2s_accuracy"][pair] == (t2s_logits.argmax() == student.targets[0])
    assert logged["one_token_parents"][0].tolist() == [1, 1]
    values.sum().backward()
    assert signals.teacher.hidden.grad is None and signals.teacher.head.grad is None
    assert (signals.student.hidden.grad != 0).any(-1).nonzero().flatten().tolist() == [0, 5]


def test_warming_up_trains_the_projector_alone(signals):
    values, logged = terms.dual_space_v2(replace(signals, only_projectors=True))
    torch.testing.assert_close(values.detach(), logged["t2s_ce"])
    if values.requires_grad:
        values.sum().backward()
    assert signals.student.hidden.grad is None or not signals.student.hidden.grad.any()


def test_where_no_parent_stands_alone_there_is_nothing(signals):
    values, _ = terms.dual_space_v2(replace(signals, student=replace(signals.student, parents=torch.arange(13) // 2)))
    apart = replace(signals, teacher=replace(signals.teacher, parents=torch.arange(14) + 100))
    assert values.isfinite().all() and terms.dual_space_v2(apart)[0].tolist() == [0, 0]


def test_the_first_projector_makes_the_heads_agree(tmp_path):
    """A small teacher's head read in a larger student's space: on shared tokens the logits are its own."""
    student = ModelConfig(str(make_model(tmp_path / "student", "qwen2", "metaspace", seed=1)))
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4}
    teacher = TeacherConfig(
        str(make_model(tmp_path / "teacher", "llama", "byte_level", seed=2, **sizes)), dtype="float32"
    )
    vocabularies = Vocabularies.of(make_tokenizer("metaspace"), make_tokenizer("byte_level"))
    lm = load_causal_lm(student, dtype=torch.float32, device=CPU)
    found = make_exact_projectors(ProjectorConfig(), student, teacher, vocabularies, device=CPU)
    own, other = vocabularies.shared
    head = lm.get_output_embeddings().weight.detach()[own]
    its = AutoModelForCausalLM.from_pretrained(teacher.path).get_output_embeddings().weight.detach()[other]
    expected = torch.linalg.lstsq(head.double(), its.double()).solution
    torch.testing.assert_close(found.t2s.weight.double(), expected, rtol=1e-3, atol=1e-4)
    other_sizes = ExactProjectors(3, 3)
    torch.save(other_sizes.state_dict(), tmp_path / "wrong")
    wrong = ProjectorConfig(path=tmp_path / "wrong")
    with pytest.raises(PrefkdError, match="holds no projectors of these two models"):
        make_exact_projectors(wrong, student, teacher, vocabularies, device=CPU)


@pytest.mark.parametrize(("kind", "rate"), [(DualSpaceProjectors, 1e-3), (ExactProjectors, 1e-4)])
def test_projectors_learn_as_fast_as_their_start_calls_for(kind, rate):
    model: Any = SimpleNamespace(lm=torch.nn.Linear(2, 2), projectors=kind(4, 6))
    assert [group.get("lr") for group in parameter_groups(model, ProjectorConfig())] == [None, rate]
    assert parameter_groups(model, ProjectorConfig(lr=0.5))[1]["lr"] == 0.5
