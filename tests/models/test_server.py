"""A teacher behind a server says what the model in memory says; what goes wrong is waited for or is one line."""

import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from prefkd.data.batches import PairBatch
from prefkd.data.collate import collate_pairs
from prefkd.data.fingerprints import same_probe, written_probe
from prefkd.data.pairs import DataConfig, load_pairs
from prefkd.data.sides import ModelSide
from prefkd.data.steps import split_step
from prefkd.data.tokenizing import align_pairs
from prefkd.errors import PrefkdError
from prefkd.models import server as server_module
from prefkd.models.load import TeacherConfig, read_side
from prefkd.models.questions import Asks, TeacherSource
from prefkd.models.served import ServedModel, sequences
from prefkd.models.server import ServerConfig
from prefkd.models.teacher import Teacher
from prefkd.ranks import Ranks
from tests.models.text_server import NAME, TextServer, text_server
from tests.tiny import make_model, write_pairs

RANKS = Ranks(0, 1, torch.device("cpu"))
INSTRUCTIONS = ("{prompt} Be good.", "{prompt} Be bad.")
ENGINES = ["vllm", "sglang"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    names = {NAME: 0, "plus": 1, "minus": 2}
    return {name: make_model(folder / name, "llama", "byte_level", seed=seed) for name, seed in names.items()}


@pytest.fixture(scope="module")
def running(folders):
    with text_server(folders) as server:
        yield server


@pytest.fixture
def server(running, monkeypatch) -> TextServer:
    running.script, running.always, running.context = [], "", 512
    running.bodies.clear()
    running.keys.clear()
    running.most_under_way = 0
    monkeypatch.setattr(server_module, "WAITS", (0.05, 0.2))
    return running


@pytest.fixture(scope="module")
def aligned(folders, tmp_path_factory) -> Dataset:
    data = DataConfig(str(write_pairs(tmp_path_factory.mktemp("data") / "pairs.jsonl", 7)), held_out_fraction=0.0)
    side = read_side(local(folders))
    return align_pairs(load_pairs(data).train, side, side, config=data, contrast=INSTRUCTIONS)


def local(folders: dict[str, Path], name: str = NAME) -> TeacherConfig:
    return TeacherConfig(str(folders[name]), dtype="float32")


def served(server: TextServer, folders, engine: str = "vllm", model: str = NAME, **settings) -> TeacherConfig:
    settings = {"timeout": 5.0, "patience": 3.0} | settings
    config = ServerConfig(server.url, model, engine, **settings)  # pyright: ignore[reportArgumentType]
    return TeacherConfig(server=config, tokenizer=str(folders[NAME]))


def batches(aligned: Dataset, share: bool = True, size: int = 3) -> list[PairBatch]:
    rows = [*range(len(aligned))]
    return [collate_pairs(aligned, microbatch, share_prompt=(share, share)) for microbatch in split_step(rows, size)]


def load(config: TeacherConfig, aligned: Dataset, asks: Asks) -> Teacher:
    teacher = Teacher(config, asks)
    teacher.load(batches(aligned)[0].teacher, chunk_size=64, ranks=RANKS)
    return teacher


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("share", [True, False])
def test_scores_are_those_of_the_model_in_memory(server, folders, aligned, engine, share):
    asks = Asks(reference=True, instructions=INSTRUCTIONS)
    here, there = (load(config, aligned, asks) for config in (local(folders), served(server, folders, engine)))
    for batch in batches(aligned, share):
        one, other = here(batch).scores, there(batch).scores
        assert one is not None and other is not None
        for name, value in vars(one).items():
            torch.testing.assert_close(value, vars(other)[name], rtol=1e-4, atol=1e-4)
    assert there.description == f"{NAME} at {server.url}  {engine} server"


@pytest.mark.parametrize(("engine", "prefix"), [("vllm", ""), ("sglang", f"{NAME}:")])
def test_the_contrast_can_be_adapters_that_the_server_serves(server, folders, aligned, engine, prefix):
    pairs = [
        {name: make(model) for name, model in (("positive", "plus"), ("negative", "minus"))}
        for make in (
            lambda model: local(folders, model),
            lambda model: served(server, folders, engine, f"{prefix}{model}"),
        )
    ]
    here, there = (load(local(folders), aligned, Asks(reference=True, pair=pair)) for pair in pairs)
    assert len(here.models) == 3 and len(there.models) == 1
    for batch in batches(aligned):
        one, other = here(batch).scores, there(batch).scores
        for name in ("reference", "positive", "negative"):
            torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=1e-4, atol=1e-4)


def test_sequences_are_those_of_the_rows(aligned):
    """However the rows lie in memory, a sequence is its prompt and its answer."""
    shared, apart = (sequences(batches(aligned, share, size=7)[0].teacher) for share in (True, False))
    rows = [*aligned]
    expected = [(row["teacher_prompt"], row[f"teacher_{name}"]) for name in ("chosen", "rejected") for row in rows]
    assert shared == apart == expected


def test_requests_are_bounded(server, folders, aligned):
    teacher = load(served(server, folders, concurrency=3), aligned, Asks(reference=True))
    server.always = "busy"
    teacher(batches(aligned, size=7)[0])
    assert 1 < server.most_under_way <= 3


WAITED_FOR = ["slow", "limit", "503", "500", "html", "list", "half", "cut", "hang up"]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("fault", WAITED_FOR)
def test_what_may_pass_is_waited_for(server, folders, aligned, engine, fault):
    teacher = load(served(server, folders, engine, timeout=0.5), aligned, Asks(reference=True))
    batch = batches(aligned)[0]
    expected = teacher.read(batch).reference
    server.script = [fault, "", fault]
    assert torch.equal(teacher.read(batch).reference, expected)


LASTING = [
    ("slow", "takes longer than 0.3 s (server.timeout)"),
    ("limit", "answers with error 429"),
    ("503", "answers with error 503"),
    ("500", "answers with error 500"),
    ("html", "sends no JSON"),
    ("half", "breaks its answers off or sends no JSON"),
    ("cut", "cannot be reached"),
    ("hang up", "cannot be reached"),
]
AT_ONCE = [
    ("401", "refuses the key in TEACHER_KEY; set server.key_env to a variable that holds a valid one"),
    ("400", "refuses the request with error 400: This key is wrong: ***"),
    ("404", f"has no model {NAME} or no /"),
    ("nan", "sends the log-prob nan"),
    ("positive", "sends the log-prob 3.0"),
    ("text", "sends the log-prob low"),
    ("ids", "sends log-probs of tokens other than those sent"),
    ("fewer", "sends log-probs of "),
    ("no choices", "check server.engine"),
    ("null", "check server.engine"),
]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("fault", "message"), LASTING + AT_ONCE)
def test_what_lasts_or_cannot_be_used_is_one_line(server, folders, aligned, engine, fault, message, monkeypatch):
    monkeypatch.setenv("TEACHER_KEY", "sk-very-secret")
    timeout = 0.3 if fault == "slow" else 60.0
    config = served(server, folders, engine, key_env="TEACHER_KEY", timeout=timeout, patience=0.2)
    teacher = load(config, aligned, Asks(reference=True))
    server.always = fault
    with pytest.raises(PrefkdError) as error:
        teacher.read(batches(aligned)[0])
    text = str(error.value)
    assert message in text and f"the server {server.url} " in text
    assert "\n" not in text and "sk-very-secret" not in text
    assert server.keys == {"Bearer sk-very-secret"}


def test_a_server_that_is_away(folders, aligned, monkeypatch):
    monkeypatch.setattr(server_module, "WAITS", (0.05, 0.2))
    with text_server(folders) as server:
        config, port = served(server, folders, patience=0.3), server.server_address[1]
        teacher = load(config, aligned, Asks(reference=True))
        expected = teacher.read(batches(aligned)[0]).reference
    with pytest.raises(PrefkdError, match="cannot be reached, for 0 s now; start it or look into its log"):
        teacher.read(batches(aligned)[0])
    patient = load_later(replace(config, server=replace(config.server, patience=20.0)), aligned, folders, port)
    assert torch.equal(patient, expected)


def load_later(config, aligned, folders, port) -> torch.Tensor:
    """Ask a server that starts only after it was asked."""
    found = []
    thread = threading.Thread(
        target=lambda: found.append(load(config, aligned, Asks(reference=True)).read(batches(aligned)[0]).reference)
    )
    thread.start()
    time.sleep(0.3)
    with text_server(folders, port):
        thread.join()
    return found[0]


def test_a_server_that_comes_back_with_another_model(server, folders, aligned):
    teacher = load(served(server, folders), aligned, Asks(reference=True))
    server.script, server.always = ["hang up"], "other"
    with pytest.raises(PrefkdError, match=f"has come back with another model under the name {NAME}"):
        teacher.read(batches(aligned)[0])


@pytest.mark.parametrize("engine", ENGINES)
def test_what_the_first_look_finds(server, folders, aligned, engine):
    def message(config: TeacherConfig) -> str:
        with pytest.raises(PrefkdError) as error:
            load(config, aligned, Asks(reference=True))
        return str(error.value)

    assert f"has no model small, but {NAME}, plus, minus" in message(served(server, folders, engine, "small"))
    server.script = ["", "tokenizer", "tokenizer"]
    assert "has another tokenizer for" in message(served(server, folders, engine))
    server.context = 20
    assert "reads 20 tokens at most" in message(served(server, folders, engine))


def test_encryption_is_not_waited_for(server, folders, aligned):
    config = served(server, folders, patience=100.0)
    encrypted = replace(config, server=replace(config.server, url=server.url.replace("http:", "https:")))
    with pytest.raises(PrefkdError, match=r"cannot be trusted: .*SSL"):
        load(encrypted, aligned, Asks(reference=True))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_answers(server, folders, engine, temperature):
    config = served(server, folders, engine)
    assert config.server is not None
    side = read_side(config)
    model = ServedModel(config.server, side)
    [prompt] = side.encode_prompts([side.frame([{"role": "user", "content": "Hello"}])])
    found = model.answer(prompt, max_new_tokens=12, temperature=temperature, top_p=1.0, seed=3)
    ends = sorted({side.eos_id, side.tokenizer.eos_token_id})
    seed = 3 if engine == "vllm" else 0
    assert found == server.generate(NAME, prompt, 12, temperature, ends, seed)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-20, 0), min_size=1, max_size=30), st.data())
def test_a_probe_is_known_again_through_rounding_alone(values, data):
    noise = data.draw(st.lists(st.floats(-0.09, 0.09), min_size=len(values), max_size=len(values)))
    moved = [value + step for value, step in zip(values, noise, strict=True)]
    assert same_probe(written_probe(values), written_probe(moved))
    assert not same_probe(written_probe(values), written_probe([value - 0.2 for value in values]))
    assert not same_probe(written_probe(values), written_probe([*values, -1.0]))
    assert not same_probe(written_probe(values), None)


PROBLEMS = [
    ({"url": "localhost:8000"}, "url: localhost:8000 is not an address"),
    ({"url": "http://me:sk-very-secret@host"}, "url: host is not an address"),
    ({"url": "http://host/v1?key=sk-very-secret"}, "url: http://host/v1 is not an address"),
    ({"key_env": "hf_verysecret"}, "key_env: is not the name of a variable in capitals"),
    ({"model": " "}, "model: is empty"),
    ({"key_env": "sk-very-secret"}, "key_env: is not the name of a variable in capitals"),
    ({"key_env": "NO_SUCH_KEY"}, "key_env: NO_SUCH_KEY is neither in the environment nor in .env"),
    ({"concurrency": 0}, "concurrency: "),
    ({"timeout": 0.0}, "timeout: "),
    ({"patience": -1.0}, "patience: "),
]


@pytest.mark.parametrize(("wrong", "message"), PROBLEMS)
def test_wrong_settings(wrong, message):
    [problem] = map(str, replace(ServerConfig("http://localhost:8000/v1", "m"), **wrong).problems())
    assert problem.startswith(message)
    assert "secret" not in problem


def test_what_does_not_go_with_a_server(folders):
    server, tokenizer = ServerConfig("http://localhost:8000/v1", "m"), str(folders[NAME])

    def problems(config: TeacherConfig) -> list[str]:
        return [str(problem).partition(":")[0] for problem in config.problems()]

    assert problems(TeacherConfig(server=server, tokenizer=tokenizer)) == []
    assert problems(TeacherConfig()) == ["path"]
    assert problems(TeacherConfig(server=server)) == ["tokenizer"]
    assert problems(TeacherConfig(tokenizer, server=server, tokenizer=tokenizer)) == ["path"]
    assert problems(TeacherConfig(tokenizer, tokenizer=tokenizer)) == ["tokenizer"]
    assert problems(TeacherConfig(server=server, tokenizer=str(folders[NAME].parent))) == ["tokenizer"]
    both = TeacherConfig(server=server, tokenizer=tokenizer, adapter="a", quantization="int8")
    assert problems(both) == ["adapter", "quantization"]
    source = TeacherSource(server=server, tokenizer=tokenizer)
    [states] = Asks(states=True).problems(source)
    assert states.startswith("server: has neither hidden states nor logits")
    assert list(Asks(reference=True).problems(source)) == []


def test_the_side_of_a_server_is_that_of_its_tokenizer(folders):
    config = TeacherConfig(server=ServerConfig("http://localhost:8000", "m"), tokenizer=str(folders[NAME]))
    side = read_side(config)
    assert isinstance(side, ModelSide) and side.fingerprint == read_side(local(folders)).fingerprint
