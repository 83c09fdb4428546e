"""Which pairs of a data set the rows train on, choose learning rates on, and are compared on."""

import json
from pathlib import Path
from typing import Any

from settings import Arguments
from transformers import AutoTokenizer

from prefkd.data.pairs import DataConfig, load_pairs

# What a template may add to a text, in tokens.
TEMPLATE = 32


def split_pairs(arguments: Arguments) -> None:
    """Share the pairs out once, each prompt to one part, into files that the runs read."""
    out = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    sizes = {
        name: getattr(arguments, name)
        for name in ("train_pairs", "teacher_pairs", "held_out_pairs", "development_pairs", "tokens")
    }
    if (out / "sizes.json").exists():
        if json.loads((out / "sizes.json").read_text()) != sizes:
            raise SystemExit(f"{out} holds a study of other sizes; name another --out")
        return
    if arguments.teacher_pairs < arguments.train_pairs:
        raise SystemExit("--teacher-pairs is less than --train-pairs, which are among them; raise it")
    config = DataConfig(
        source=arguments.data, subset=arguments.subset, split=arguments.split, held_out_fraction=0.0, on_bad_row="skip"
    )
    read = load_pairs(config).train
    tokenizers: list[Any] = [AutoTokenizer.from_pretrained(path) for path in (arguments.student, arguments.teacher)]
    short, prompts = [], set()
    for row in read.shuffle(seed=0):
        pair: dict[str, Any] = {name: row[name] for name in ("prompt", "chosen", "rejected")}  # pyright: ignore
        prompt = "\n\n".join(f"{message['role']}: {message['content']}" for message in pair["prompt"])
        longest = max(
            len(tokenizer(prompt + pair[answer])["input_ids"])
            for tokenizer in tokenizers
            for answer in ("chosen", "rejected")
        )
        if longest + TEMPLATE <= arguments.tokens and prompt not in prompts:
            prompts.add(prompt)
            short.append(pair)
    parts = {"held_out": sizes["held_out_pairs"], "development": sizes["development_pairs"]}
    needed = sum(parts.values()) + sizes["teacher_pairs"]
    if len(short) < needed:
        raise SystemExit(
            f"{len(short)} pairs are short enough, and {needed} are needed; lower a size or raise --tokens"
        )
    first = 0
    for name, size in parts.items():
        write_pairs(out / f"{name}.jsonl", short[first : first + size])
        first += size
    write_pairs(out / "pairs.jsonl", short[first : first + sizes["train_pairs"]])
    write_pairs(out / "many_pairs.jsonl", short[first : first + sizes["teacher_pairs"]])
    (out / "sizes.json").write_text(json.dumps(sizes))
    print(f"{len(short)} of {len(read)} pairs are short enough", flush=True)


def write_pairs(path: Path, pairs: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(pair, ensure_ascii=False) + "\n" for pair in pairs), encoding="utf-8")
