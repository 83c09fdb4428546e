r"""Time and peak memory of a preference step beside TRL's DPOTrainer, on the same pairs, in the same run.

A model against its own frozen copy, float32 on the CPU. Each side runs in a process of its own, TRL in its own
environment, because its versions need not agree with ours:

    python -m venv trl && trl/bin/pip install trl==1.16.0
    python benchmarks/preference_step.py --model models/smollm2-135m-instruct --pairs pairs.jsonl \
        --trl-python trl/bin/python

The pairs file holds prompt, chosen and rejected strings. Only pairs that need no truncation are taken, so that both
sides see the same tokens. The first step of each side warms up and is not counted.
"""

import gzip
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import tyro


@dataclass
class Arguments:
    """What to measure."""

    model: Path
    """Folder of the model."""
    pairs: Path
    """JSONL file, gzipped or not, with prompt, chosen and rejected strings."""
    trl_python: Path | None = None
    """Python of an environment with TRL; without it only our side runs."""
    steps: int = 4
    """Counted steps."""
    batch_size: int = 2
    """Pairs of a step."""
    max_length: int = 384
    """Tokens of prompt and longer answer together, at most."""
    threads: int = 2
    """Threads of torch."""
    activation_checkpointing: bool = False
    """Recompute layers in the backward pass, on both sides."""
    side: Literal["both", "prefkd", "trl"] = "both"
    """Used by the script itself to start the two sides."""


def read_pairs(arguments: Arguments, tokenizer: Any) -> list[dict[str, str]]:
    """The first pairs that fit without truncation, one step more than is counted."""
    wanted = (arguments.steps + 1) * arguments.batch_size
    chosen = []
    open_file = gzip.open if arguments.pairs.suffix == ".gz" else open
    with open_file(arguments.pairs, "rt", encoding="utf-8") as lines:
        for line in lines:
            pair = json.loads(line)
            count = {name: len(tokenizer(pair[name])["input_ids"]) for name in ("prompt", "chosen", "rejected")}
            if count["prompt"] + max(count["chosen"], count["rejected"]) + 1 <= arguments.max_length:
                chosen.append(pair)
            if len(chosen) == wanted:
                break
    return chosen


def run_prefkd(arguments: Arguments) -> dict[str, float]:
    """Seconds a pair, mean loss and peak memory of our step."""
    import torch
    from datasets import Dataset

    from prefkd.data.batches import Microbatch, collate_pairs
    from prefkd.method.preference import dpo_loss
    from prefkd.models.load import ModelConfig, load_causal_lm, load_tokenizer
    from prefkd.models.logprob_model import LogprobModel

    torch.set_num_threads(arguments.threads)
    config, cpu = ModelConfig(str(arguments.model)), torch.device("cpu")
    tokenizer = load_tokenizer(config)
    rows = []
    for row, pair in enumerate(read_pairs(arguments, tokenizer)):
        ids = {name: tokenizer(pair[name])["input_ids"] for name in ("prompt", "chosen", "rejected")}
        answers: dict[str, Any] = {"file": str(arguments.pairs), "row": row}
        for name in ("chosen", "rejected"):
            ids[name] = [*ids[name], tokenizer.eos_token_id]
            answers |= {f"{name}_parents": len(ids[name]), f"{name}_ends": True}
        for side in ("student", "teacher"):
            answers |= {f"{side}_{name}": value for name, value in ids.items()}
            answers |= {f"{side}_{name}_parents": list(range(len(ids[name]))) for name in ("chosen", "rejected")}
        rows.append(answers)
    aligned = Dataset.from_list(rows)
    policy = LogprobModel(load_causal_lm(config, dtype=torch.float32, device=cpu)).train()
    if arguments.activation_checkpointing:
        policy.lm.gradient_checkpointing_enable({"use_reentrant": False})
    steps = [
        collate_pairs(aligned, Microbatch(list(range(i, i + arguments.batch_size))), share_prompt=(True, True))
        for i in range(0, len(aligned), arguments.batch_size)
    ]
    # Before training the policy is its own frozen copy: its log-probs are taken ahead, and no second model is needed.
    references = []
    with torch.no_grad():
        for step, batch in enumerate(steps):
            if step == 1:
                reference_began = time.perf_counter()
            references.append(batch.parent_sums(policy(batch.student), batch.student).sum(-1))
    reference_seconds = time.perf_counter() - reference_began  # pyright: ignore[reportPossiblyUnbound]
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-6, fused=True)
    losses = []
    for step, (batch, (reference_chosen, reference_rejected)) in enumerate(zip(steps, references, strict=True)):
        if step == 1:
            began = time.perf_counter() - reference_seconds
        chosen, rejected = batch.parent_sums(policy(batch.student), batch.student).sum(-1)
        loss = dpo_loss(chosen, rejected, reference_chosen, reference_rejected, beta=0.1)[0].mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return _figures(arguments, time.perf_counter() - began, losses)  # pyright: ignore[reportPossiblyUnbound]


def run_trl(arguments: Arguments) -> dict[str, float]:
    """The same of TRL's DPOTrainer with a live reference."""
    import torch
    from datasets import Dataset  # pyright: ignore
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import DPOConfig, DPOTrainer  # pyright: ignore

    torch.set_num_threads(arguments.threads)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)

    class Clock(TrainerCallback):
        began = 0.0

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 1:
                self.began = time.perf_counter()

    clock, scratch = Clock(), tempfile.mkdtemp()
    load = AutoModelForCausalLM.from_pretrained
    trainer = DPOTrainer(
        model=load(arguments.model, dtype=torch.float32),
        ref_model=load(arguments.model, dtype=torch.float32),
        args=DPOConfig(
            output_dir=scratch,
            per_device_train_batch_size=arguments.batch_size,
            max_length=arguments.max_length,
            learning_rate=1e-6,
            lr_scheduler_type="constant",
            max_steps=arguments.steps + 1,
            beta=0.1,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=arguments.activation_checkpointing,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(read_pairs(arguments, tokenizer)),
        processing_class=tokenizer,
        callbacks=[clock],
    )
    trainer._get_train_sampler = lambda *_: None  # in the order of the file, as our side
    trainer.train()
    seconds = time.perf_counter() - clock.began
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return _figures(arguments, seconds, losses)


def _figures(arguments: Arguments, seconds: float, losses: list[float]) -> dict[str, float]:
    return {
        "seconds_per_pair": seconds / (arguments.steps * arguments.batch_size),
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "mean_loss": sum(losses) / len(losses),
    }


def main(arguments: Arguments) -> None:
    if arguments.side != "both":
        figures = run_prefkd(arguments) if arguments.side == "prefkd" else run_trl(arguments)
        sys.stdout.write("\n" + json.dumps(figures) + "\n")
        return
    results = {}
    for side, python in (("prefkd", sys.executable), ("trl", arguments.trl_python)):
        if python is None:
            continue
        options = {name: value for name, value in asdict(arguments).items() if value is not None} | {"side": side}
        command = [str(python), __file__]
        for name, value in options.items():
            flag = f"--{name.replace('_', '-')}"
            command += [flag, str(value)] if not isinstance(value, bool) else [flag] * value
        environment = os.environ | {"OMP_NUM_THREADS": str(arguments.threads)}
        output = subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE, env=environment).stdout
        results[side] = json.loads(output.strip().splitlines()[-1])
        sys.stdout.write(f"{side}: {results[side]}\n")
    if len(results) == 2:
        ours, theirs = results["prefkd"], results["trl"]
        for name in ("seconds_per_pair", "peak_gib"):
            sys.stdout.write(f"{name}: {ours[name] / theirs[name]:.2f} of TRL's\n")


if __name__ == "__main__":
    main(tyro.cli(Arguments))
