"""On a real model and real pairs the numbers are those of a few lines of transformers."""

import gzip
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefkd.cli.main import main

PAIRS = 2


def test_logprobs_of_real_pairs(real_models, pairs, tmp_path):
    folder = real_models / "smollm2-135m-instruct"
    with gzip.open(pairs / "hh_harmless_pairs.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    rows = [row for row in rows if row["prompt"].count("Human:") == 1 and len(json.dumps(row)) < 600][:PAIRS]
    Path(tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "config.yaml").write_text(
        f"output_dir: {tmp_path}/out\n"
        f"checkpoints: {{model: {{path: {folder}, dtype: float32}}}}\n"
        f"preferences: {{data: {{hh: {{source: {tmp_path}/pairs.jsonl, max_length: 1024}}}}}}\n"
        "device: cpu\n"
    )
    assert main(["run", "evaluate", "--config", str(tmp_path / "config.yaml")]) == 0
    found = {}
    for line in (tmp_path / "out/preferences/hh/model.jsonl").read_text().splitlines():
        record = json.loads(line)
        found[record["row"]] = record
    lm = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    right = 0
    for number, row in enumerate(rows, start=1):
        question = row["prompt"].removeprefix("\n\nHuman:").removesuffix("\n\nAssistant:").strip()
        prompt = [{"role": "user", "content": question}]
        sums = {}
        for answer in ("chosen", "rejected"):
            before = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
            ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (before, row[answer].strip())]
            ids[1].append(tokenizer.eos_token_id)
            with torch.no_grad():
                logprobs = lm(torch.tensor([ids[0] + ids[1]])).logits[0, len(ids[0]) - 1 : -1].log_softmax(-1)
            sums[answer] = logprobs.gather(-1, torch.tensor(ids[1])[:, None]).sum().item()
            assert found[number][f"{answer}_logprob"] == pytest.approx(sums[answer], rel=1e-4)
            assert found[number][f"{answer}_tokens"] == len(ids[1])
        right += sums["chosen"] > sums["rejected"]
    table = json.loads((tmp_path / "out/table.json").read_text())
    assert table["rows"][0]["value"] == pytest.approx(right / PAIRS)
