r"""Time and peak memory of a preference step compared with TRL's DPOTrainer, on the same pairs, in the same run.

A model against its own frozen start, float32 on the CPU. Each side runs in a process of its own, TRL in its own
environment (see trl_side.py), because its versions need not agree with ours:

    python benchmarks/preference_step.py --model models/smollm2-135m-instruct --pairs pairs.jsonl \
        --trl-python trl/bin/python

The pairs file holds prompt, chosen and rejected strings. Both sides see the same tokens. The first step of each side
warms up and is not counted. Our figures include the pass that reads the reference. Where others use the machine too,
the seconds of CPU tell more than those of the clock.
"""

import json
import os
import resource
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import tyro
from pairs_and_sides import read_pairs, run_trl


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
    microbatch_size: int = 1
    """Pairs of a forward pass on our side. TRL takes the whole step at once, as its user would."""
    min_length: int = 0
    """Tokens of prompt and longer answer together, at least."""
    max_length: int = 384
    """The same, at most."""
    threads: int = 2
    """Threads of torch."""
    activation_checkpointing: Literal["neither", "both", "prefkd", "trl"] = "neither"
    """Which side recomputes layers in the backward pass. TRL does so by default."""
    only_our_side: bool = False
    """Used by the script itself."""


def choose_pairs(arguments: Arguments) -> list[dict[str, str]]:
    """One step more than is counted."""
    count = (arguments.steps + 1) * arguments.batch_size
    return read_pairs(
        arguments.pairs,
        arguments.model,
        count=count,
        max_length=arguments.max_length,
        min_length=arguments.min_length,
    )


def run_prefkd(arguments: Arguments) -> dict[str, Any]:
    """Seconds, losses and peak memory of our side."""
    import torch
    from datasets import Dataset

    from prefkd.data.collate import collate_pairs
    from prefkd.data.rows import AlignedAnswer, AlignedRow, Reading
    from prefkd.data.steps import Microbatch
    from prefkd.method.preference import dpo_loss
    from prefkd.models.load import ModelConfig, load_causal_lm, load_tokenizer
    from prefkd.models.logprob_model import LogprobModel

    torch.set_num_threads(arguments.threads)

    def clocks() -> torch.Tensor:
        return torch.tensor([time.perf_counter(), time.process_time()], dtype=torch.float64)

    config, cpu = ModelConfig(str(arguments.model)), torch.device("cpu")
    tokenizer = load_tokenizer(config)
    rows = []
    for row, pair in enumerate(choose_pairs(arguments)):
        ids = {name: tokenizer(text)["input_ids"] for name, text in pair.items()}
        chosen, rejected = ([*ids[name], tokenizer.eos_token_id] for name in ("chosen", "rejected"))
        reading = Reading(ids["prompt"], (chosen, rejected), (range(len(chosen)), range(len(rejected))))
        answers = AlignedAnswer(len(chosen), True, 0, 0), AlignedAnswer(len(rejected), True, 0, 0)
        columns = AlignedRow(reading, reading, answers, {}).columns()
        rows.append({"file": str(arguments.pairs), "row": row, **columns})
    aligned = Dataset.from_list(rows)
    policy = LogprobModel(load_causal_lm(config, dtype=torch.float32, device=cpu)).train()
    if arguments.activation_checkpointing in ("both", "prefkd"):
        policy.lm.gradient_checkpointing_enable({"use_reentrant": False})
    size = arguments.microbatch_size
    batches = [
        collate_pairs(aligned, Microbatch(list(range(i, i + size))), share_prompt=(True, True))
        for i in range(0, len(aligned), size)
    ]
    a_step = arguments.batch_size // size
    # Before training the policy is its own reference: its log-probs are read ahead, and no second model is needed.
    references = []
    with torch.no_grad():
        for number, batch in enumerate(batches):
            if number == a_step:
                reference_began = clocks()
            references.append(batch.parent_sums(policy(batch.student), batch.student).sum(-1))
    reference_seconds = clocks() - reference_began  # pyright: ignore[reportPossiblyUnbound]
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-6, weight_decay=0.0, fused=True)
    losses = []
    for step in range(arguments.steps + 1):
        if step == 1:
            began = clocks() - reference_seconds
        loss_of_step = 0.0
        for number in range(step * a_step, (step + 1) * a_step):
            batch = batches[number]
            policy_sums = batch.parent_sums(policy(batch.student), batch.student).sum(-1)
            loss = dpo_loss(*policy_sums, *references[number], beta=0.1)[0].sum() / arguments.batch_size
            loss.backward()
            loss_of_step += loss.item()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss_of_step)
    seconds, cpu_seconds = (clocks() - began).tolist()  # pyright: ignore[reportPossiblyUnbound]
    return {
        "losses": losses,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def run_our_side(arguments: Arguments) -> dict[str, Any]:
    """The same in a process of its own, whose peak memory is its own."""
    command = [sys.executable, __file__, "--only-our-side"]
    for name, value in asdict(arguments).items():
        if name not in ("trl_python", "only_our_side"):
            command += [f"--{name.replace('_', '-')}", str(value)]
    environment = os.environ | {"OMP_NUM_THREADS": str(arguments.threads)}
    ended = subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE, env=environment)
    return json.loads(ended.stdout.strip().splitlines()[-1])


def main(arguments: Arguments) -> None:
    if arguments.only_our_side:
        sys.stdout.write("\n" + json.dumps(run_prefkd(arguments)) + "\n")
        return
    results = {"prefkd": run_our_side(arguments)}
    if arguments.trl_python is not None:
        results["trl"] = run_trl(
            arguments.trl_python,
            model=arguments.model,
            pairs=choose_pairs(arguments),
            batch_size=arguments.batch_size,
            accumulation=1,
            steps=arguments.steps + 1,
            max_length=arguments.max_length,
            lr=1e-6,
            threads=arguments.threads,
            activation_checkpointing=arguments.activation_checkpointing in ("both", "trl"),
        )
    for side, figures in results.items():
        for name in ("seconds", "cpu_seconds"):
            figures[f"{name}_per_pair"] = figures[name] / (arguments.steps * arguments.batch_size)
        sys.stdout.write(
            f"{side}: {figures['seconds_per_pair']:.2f} s a pair ({figures['cpu_seconds_per_pair']:.2f} of CPU), "
            f"peak {figures['peak_gib']:.2f} GiB, losses {[round(loss, 4) for loss in figures['losses']]}\n"
        )
    if len(results) == 2:
        for name in ("seconds_per_pair", "cpu_seconds_per_pair", "peak_gib"):
            sys.stdout.write(f"{name}: {results['prefkd'][name] / results['trl'][name]:.2f} of TRL's\n")


if __name__ == "__main__":
    main(tyro.cli(Arguments))
