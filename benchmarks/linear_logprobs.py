"""`linear_token_logprobs` compared with the naive way: full logits, log-softmax, gather. Forward and backward.

    python benchmarks/linear_logprobs.py                                     # full size; the naive way needs 16 GB
    python benchmarks/linear_logprobs.py --tokens 1024 --vocabulary 32000    # a smaller machine

Each way runs in a process of its own. Its extra memory is the highest resident size (ru_maxrss) after the work less the
highest before it, when inputs are in place and the thread pool is up; so gradients count, inputs do not. The ways take
turns, and the best time of each counts.
"""

import json
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import tyro
from rich.console import Console
from rich.table import Table

from prefkd.method.logprobs import linear_token_logprobs

WAYS = ("naive", "chunked")


@dataclass
class Options:
    """Time and memory of chunked log-probabilities, as a share of the naive way's."""

    tokens: int = 8 * 1024
    """Target tokens, N."""
    vocabulary: int = 152_000
    """Vocabulary, V."""
    hidden: int = 1536
    """Hidden size, H."""
    chunk_size: int = 576
    """Tokens per chunk of the chunked way."""
    threads: int = 2
    """Threads of torch, the same for both ways."""
    repeats: int = 2
    """Turns that each way takes."""
    freeze_head: bool = False
    """Ask for the gradient of the hidden states alone, as with a LoRA model."""
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print JSON instead of a table."""
    way: Literal["naive", "chunked"] | None = None
    """Run this way alone, once, in this process; the comparison starts itself so."""


def naive_token_logprobs(hidden: torch.Tensor, head_weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    logprobs = torch.nn.functional.linear(hidden, head_weight).log_softmax(-1)
    return logprobs.gather(-1, targets.unsqueeze(-1)).squeeze(-1)


def work(options: Options) -> dict[str, float]:
    """One way, once, in this process."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    hidden = torch.randn(options.tokens, options.hidden, requires_grad=True)
    head_weight = torch.empty(options.vocabulary, options.hidden).normal_(std=options.hidden**-0.5)
    head_weight.requires_grad_(not options.freeze_head)
    targets = torch.randint(options.vocabulary, (options.tokens,))
    upstream = torch.randn(options.tokens)
    torch.mm(hidden[:64].detach(), hidden[:64].detach().T)  # starts the thread pool
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    if options.way == "naive":
        found = naive_token_logprobs(hidden, head_weight, targets)
    else:
        found = linear_token_logprobs(hidden, head_weight, targets, chunk_size=options.chunk_size)
    forward = time.perf_counter() - start
    found.backward(upstream)
    seconds = time.perf_counter() - start
    extra = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * (1 if sys.platform == "darwin" else 1024)
    check = 0.0 if head_weight.grad is None else head_weight.grad.square().mean().sqrt().item()
    return {"seconds": seconds, "forward_s": forward, "extra_bytes": extra, "sum": found.sum().item(), "grad": check}


def measure(options: Options) -> dict[str, dict[str, float]]:
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(options.repeats):
        for way in WAYS:
            command = [sys.executable, __file__, *sys.argv[1:], "--way", way]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            runs[way].append(json.loads(done.stdout))
    best = {way: {key: min(run[key] for run in runs[way]) for key in runs[way][0]} for way in WAYS}
    for key in ("sum", "grad"):
        one, other = (best[way][key] for way in WAYS)
        if abs(one - other) > 1e-4 * abs(one) + 1e-12:
            raise SystemExit(f"the two ways disagree: {key} is {one} and {other}")
    keys = ("seconds", "forward_s", "extra_bytes")
    return {**best, "ratio": {key: best["chunked"][key] / best["naive"][key] for key in keys}}


def report(options: Options, found: dict[str, dict[str, float]], console: Console) -> None:
    sizes = f"{options.tokens:,} tokens, V = {options.vocabulary:,}, H = {options.hidden:,}"
    table = Table(title=f"{sizes}, {options.threads} threads")
    for heading in ("", "forward, s", "forward + backward, s", "extra memory, GiB"):
        table.add_column(heading, justify="right" if heading else "left")
    for way in WAYS:
        row = found[way]
        cells = (row["forward_s"], row["seconds"], row["extra_bytes"] / 2**30)
        table.add_row(way, *(f"{cell:.2f}" for cell in cells))
    ratio = found["ratio"]
    table.add_row("ratio", *(f"{ratio[key]:.3f}" for key in ("forward_s", "seconds", "extra_bytes")))
    console.print(table)


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    if options.way:
        sys.stdout.write(json.dumps(work(options)))
    elif options.as_json:
        Console().print_json(data=measure(options))
    else:
        report(options, measure(options), Console())


if __name__ == "__main__":
    main()
