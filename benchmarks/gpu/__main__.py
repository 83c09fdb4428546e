"""What one GPU does with prefkd, in at most eight minutes: `bash benchmarks/gpu/run.sh`, or `python benchmarks/gpu`.

Every part stands in a try of its own, is left out or ended when time is short, and its numbers are in results.json at
once. With `--smoke` the same code runs on tiny models on a CPU. Weights are random: losses mean nothing here, times and
memory do.
"""

import contextlib
import faulthandler
import gc
import json
import logging
import os
import platform
import shutil
import signal
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE)]

import psutil  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
import tyro  # noqa: E402
import world  # noqa: E402  # pyright: ignore[reportMissingImports]

from prefkd import catalog  # noqa: E402
from prefkd.config import load_config  # noqa: E402
from prefkd.data.packing import pack  # noqa: E402
from prefkd.estimate.memory import Card  # noqa: E402
from prefkd.estimate.plan import make_plan  # noqa: E402
from prefkd.method.head_passes import EAGER, compiled_passes  # noqa: E402
from prefkd.method.logprobs import linear_token_logprobs  # noqa: E402
from prefkd.models.load import TeacherConfig  # noqa: E402
from prefkd.models.logit_room import logit_rows  # noqa: E402
from prefkd.models.quantize import quantization_problems, quantize, unpacked  # noqa: E402
from prefkd.models.varlen import varlen_attention  # noqa: E402

GIB = 2**30
PAIR = "mistral_7b_to_qwen2.5_1.5b"
CARD = 24  # GiB of the small card that is played
WITHOUT_MODELS = {"environment", "ceilings", "attention", "varlen", "head", "memory"}


@dataclass
class Arguments:
    """What to measure."""

    only: str = ""
    """Names of parts with commas between them, `training` for all that begin so; all if not given."""
    minutes: float = 7.8
    """Time after which the part that runs is ended; none begins that would take longer."""
    out: Path = Path(os.environ.get("OUT", HERE / "out"))
    """Folder of results.json and log.txt; that of the variable OUT, if it is set."""
    smoke: bool = False
    """Tiny models on a CPU, to find mistakes before a GPU is there."""


class Done(Exception):
    """The training is over; nothing is saved."""


class OutOfTime(BaseException):
    """The time of the whole measurement is over; no exception that a run would take for a fault of its own."""


class Warnings(logging.Handler):
    """What prefkd warns of in a run: what it falls back to, above all."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@dataclass
class Bench:
    """A measurement.

    Attributes:
        work: Folder of models, pairs and runs.
        results: Numbers by part.
    """

    arguments: Arguments
    work: Path
    device: torch.device
    began: float = field(default_factory=time.perf_counter)
    results: dict[str, Any] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def smoke(self) -> bool:
        return self.arguments.smoke

    @property
    def length(self) -> int:
        """Tokens of a text."""
        return 64 if self.smoke else 1024

    @property
    def wanted(self) -> set[str]:
        """The parts that are asked for, and what they need."""
        named = set(self.arguments.only.split(","))
        needs_models = {name.partition(".")[0] for name in named} - WITHOUT_MODELS
        return named | {"environment"} | ({"models"} if needs_models else set())

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return self.arguments.minutes * 60 - (time.perf_counter() - self.began)

    def part(self, name: str, action: Callable[[], Any], *, needs: float) -> None:
        """Run a part that may fail; leave it out where fewer than `needs` seconds are left."""
        if self.arguments.only and not {name, name.partition(".")[0]} & self.wanted:
            return
        began = time.perf_counter()
        try:
            if self.left < needs and not self.smoke:
                raise TimeoutError(f"left out: {self.left:.0f} s are left, and it needs {needs:.0f}")
            with self.clock():
                self.results[name] = action()
            print(f"{name}: {json.dumps(self.results[name], default=str)}", flush=True)
        except (Exception, OutOfTime) as error:
            self.errors[name] = f"{type(error).__name__}: {str(error)[:500]}"
            print(f"{name} failed: {self.errors[name]}", flush=True)
            with (self.arguments.out / "log.txt").open("a") as log:
                traceback.print_exc(file=log)
        self.seconds[name] = round(time.perf_counter() - began, 1)
        clean()
        found = {"results": self.results, "errors": self.errors, "seconds": self.seconds}
        (self.arguments.out / "results.json").write_text(json.dumps(found, indent=1, default=str))

    @contextlib.contextmanager
    def clock(self) -> Iterator[None]:
        """Inside, `OutOfTime` is raised when the time is over."""

        def end(*_: Any) -> None:
            raise OutOfTime(f"ended after {self.arguments.minutes} minutes")

        signal.signal(signal.SIGALRM, end)
        signal.setitimer(signal.ITIMER_REAL, 0 if self.smoke else max(self.left, 0.1))
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def timed(self, action: Callable[[], Any], repeats: int = 5) -> float:
        """Median seconds, after two calls that do not count."""
        found = []
        for number in range(2 + repeats if not self.smoke else 2):
            synchronize()
            began = time.perf_counter()
            action()
            synchronize()
            found.append(time.perf_counter() - began)
            if number == 1:
                found = found[1:] if self.smoke else []
        return statistics.median(found)

    def train(self, recipe: str, config: str, *overrides: str) -> dict[str, Any]:
        """Some steps of a recipe with a shipped config: its own metrics, without the first two steps."""
        module: Any = catalog.load_recipe(catalog.find_recipe(recipe))
        out = Path(tempfile.mkdtemp(dir=self.work / "runs")) / "out"
        settings = [
            *(f"output_dir={out}", f"training.max_steps={3 if self.smoke else 8}", "training.evaluate_every=1000"),
            *("training.checkpoint_every=null", f"training.device={self.device.type}"),
            *("training.batch_size=8", "training.sample_answers=0", *self.data("full", self.length)),
        ]
        found = load_config(module.Config, catalog.find_run(recipe, config)[1], [*settings, *overrides])
        own_train = module.train

        def train(*arguments: Any) -> None:
            own_train(*arguments)
            raise Done

        module.train = train
        warnings = Warnings()
        logging.getLogger("prefkd").addHandler(warnings)
        try:
            with self.quiet(), contextlib.suppress(Done):
                module.main(found)
        finally:
            logging.getLogger("prefkd").removeHandler(warnings)
            module.train = own_train
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()][1:]
        names = ("processed_tokens_per_second", "mfu", "peak_memory_gib")
        measured = {name: statistics.median(line[name] for line in lines[2:]) for name in names if name in lines[0]}
        if self.device.type == "cuda":
            measured["reserved_gib"] = torch.cuda.max_memory_reserved() / GIB  # from the last step on
        measured["first_step_tokens_per_second"] = lines[0]["processed_tokens_per_second"]
        return measured | ({"warnings": warnings.lines} if warnings.lines else {})

    def planned(self, recipe: str, config: str, *overrides: str) -> float:
        """GiB that `prefkd plan` counts for a step of this run on the small card, to compare `peak_memory_gib` with."""
        module: Any = catalog.load_recipe(catalog.find_recipe(recipe))
        settings = [f"output_dir={self.work}/planned", *self.data("full", self.length), *overrides]
        found = load_config(module.Config, catalog.find_run(recipe, config)[1], settings)
        return make_plan(module, recipe, found, 1, Card("a small one", CARD), counts_scores=False).in_step / GIB

    def whole(self, recipe: str, out: Path, *overrides: str, pairs: str, length: int) -> None:
        """A whole run of a recipe, on texts cut to so many tokens."""
        module = catalog.load_recipe(catalog.find_recipe(recipe))
        settings = [f"output_dir={out}", *self.data(pairs, length), *overrides]
        with self.quiet():
            module.main(load_config(module.Config, catalog.find_run(recipe, PAIR)[1], settings))

    def data(self, name: str, length: int) -> tuple[str, ...]:
        """Pairs of random words, cut to so many tokens."""
        return (
            *(f"data.source={self.work}/{name}.jsonl", "data.subset=null", "data.split=train", "data.workers=1"),
            *("data.held_out_split=null", "data.held_out_fraction=0.05", "data.on_bad_row=skip"),
            *(f"data.max_length={length}", f"data.max_prompt_length={length // 2}"),
        )

    @contextlib.contextmanager
    def quiet(self) -> Iterator[None]:
        """Inside, what is printed goes to log.txt."""
        with (self.arguments.out / "log.txt").open("a") as log, contextlib.redirect_stdout(log):
            yield


def clean() -> None:
    """Give back what a part has left behind, compiled graphs among it, which the next run's models do not fit."""
    torch.compiler.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def environment(bench: Bench) -> dict[str, Any]:
    found: dict[str, Any] = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "card": platform.machine(),
    }
    if bench.device.type == "cuda":
        found |= {"card": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
        found["gib"] = torch.cuda.get_device_properties(0).total_memory / GIB
        found["float32_products"] = torch.get_float32_matmul_precision()
    return found


def ceilings(bench: Bench) -> dict[str, float]:
    """The most that the card does: products in bfloat16, and bytes copied."""
    size = 64 if bench.smoke else 8192
    one = torch.randn(size, size, device=bench.device, dtype=torch.bfloat16)
    seconds = bench.timed(lambda: one @ one)
    copied = torch.empty(size * size * 8, device=bench.device, dtype=torch.bfloat16)
    other = torch.empty_like(copied)
    copying = bench.timed(lambda: other.copy_(copied))
    return {"tflops": 2 * size**3 / seconds / 1e12, "copy_gb_per_second": 2 * copied.nbytes / copying / 1e9}


def attention(bench: Bench) -> dict[str, float]:
    """Milliseconds forward and backward: causal, under a mask, and under a mask of a new shape each time."""
    heads, length = (2, 32) if bench.smoke else (12, 1536)

    def run(length: int, *, masked: bool) -> None:
        shape = (4, heads, length, 128)
        q, k, v = (torch.randn(shape, device=bench.device, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
        mask = torch.ones(length, length, dtype=torch.bool, device=bench.device).tril() if masked else None
        F.scaled_dot_product_attention(q, k, v, mask, is_causal=not masked).sum().backward()

    lengths = iter(range(length, length - 64, -1))
    return {
        "causal": bench.timed(lambda: run(length, masked=False)) * 1e3,
        "mask": bench.timed(lambda: run(length, masked=True)) * 1e3,
        "mask_of_new_shapes": bench.timed(lambda: run(next(lengths), masked=True)) * 1e3,
    }


def varlen(bench: Bench) -> dict[str, float]:
    """The same for packed rows: four pairs of a prompt and two answers of 512 tokens each, heads grouped by six."""
    heads, part = (6, 8) if bench.smoke else (12, 512)
    packing = pack([(part, part, part)] * 4, 3 * part, torch.zeros(1, dtype=torch.long)).to(bench.device)

    def run() -> None:
        shapes = [(1, count, 12 * part, 128) for count in (heads, heads // 6, heads // 6)]
        q, k, v = (
            torch.randn(shape, device=bench.device, dtype=torch.bfloat16, requires_grad=True) for shape in shapes
        )
        found, _ = varlen_attention(torch.nn.Identity(), q, k, v, None, packing=packing)
        found.sum().backward()

    return {"packed": bench.timed(run) * 1e3}


def head(bench: Bench, *, compiled: bool) -> dict[str, float]:
    """Milliseconds of log-probs of 4,096 targets in a vocabulary of 151,936, forward and backward, by chunk size."""
    targets, vocabulary, width = (16, 512, 64) if bench.smoke else (4096, 151936, 1536)
    hidden = torch.randn(targets, width, device=bench.device, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(vocabulary, width, device=bench.device, dtype=torch.bfloat16).mul_(0.02).requires_grad_()
    ids = torch.randint(vocabulary, (targets,), device=bench.device)
    passes = compiled_passes("eager" if bench.smoke else "inductor") if compiled else EAGER

    def run(chunk: int) -> None:
        linear_token_logprobs(hidden, weight, ids, chunk_size=chunk, passes=passes).sum().backward()

    return {f"chunk_size={size}": bench.timed(lambda size=size: run(size)) * 1e3 for size in (512, 1766, 4096)}


def memory(bench: Bench) -> dict[str, float]:
    """The constants of prefkd/estimate/memory.py, CONTEXT and WORKSPACES in GiB, and GAPS; and bytes that are made for
    each weight in nf4 while it is unpacked."""
    if bench.device.type != "cuda":
        return {}
    torch._C._cuda_clearCublasWorkspaces()  # which it keeps from the parts before
    clean()
    began = torch.cuda.memory_allocated()
    head(bench, compiled=False)
    attention(bench)
    clean()  # what is still allocated belongs to cuBLAS
    free, whole = torch.cuda.mem_get_info()
    found = {"context": (whole - free - torch.cuda.memory_reserved()) / GIB}
    found["workspaces"] = (torch.cuda.memory_allocated() - began) / GIB
    torch.cuda.reset_peak_memory_stats()
    for length in range(2048, 8192, 517):  # rows of unequal length, as in a training
        hidden = [torch.empty(length, 8960, device=bench.device) for _ in range(8)]
        hidden.append(torch.empty(length * 2, 1536, device=bench.device))
        del hidden
    found["gaps"] = 1 - torch.cuda.max_memory_allocated() / torch.cuda.max_memory_reserved()
    layer = torch.nn.Linear(4096, 14336, bias=False, device=bench.device, dtype=torch.bfloat16)
    weights = layer.weight.numel()
    quantize(torch.nn.Sequential(layer), "nf4")
    clean()
    began = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    unpacked(layer.weight)
    return found | {"nf4_bytes_a_weight": (torch.cuda.max_memory_allocated() - began) / weights}


def models(bench: Bench) -> dict[str, float]:
    """Random models at full size, and tiny ones for comparing devices."""
    began = time.perf_counter()
    sizes = {"student": world.QWEN_1_5B, "teacher": world.MISTRAL_7B}
    for seed, (name, full) in enumerate(sizes.items(), start=1):
        tiny = full | world.TINY
        world.make_model(bench.work / f"tiny_{name}", tiny, device=torch.device("cpu"), seed=seed)
        world.make_model(bench.work / name, tiny if bench.smoke else full, device=bench.device, seed=seed)
    size = (200, 400) if bench.smoke else (6000, 8000)
    world.write_pairs(bench.work / "full.jsonl", 60 if bench.smoke else 150, characters=size)
    world.write_pairs(bench.work / "few.jsonl", 30 if bench.smoke else 70, characters=size, seed=1)
    world.write_pairs(bench.work / "short.jsonl", 40, characters=(200, 400), seed=2)
    (bench.work / "runs").mkdir()
    return {"seconds": time.perf_counter() - began}


def agreement(bench: Bench, recipe: str) -> dict[str, float]:
    """The largest difference between losses on a CPU and here, of a few steps in float32; the goal is 1e-4."""
    losses = []
    for device in ("cpu", bench.device.type):
        out = Path(tempfile.mkdtemp(dir=bench.work / "runs")) / "out"
        settings = [
            *("training.max_steps=3", "training.batch_size=4", "training.sample_answers=0", "training.compile=false"),
            *("training.precision=float32", "teacher.dtype=float32", f"training.device={device}"),
            *("optimizer.lr=1e-4", "lr_schedule.num_warmup_steps=0"),
        ]
        bench.whole(recipe, out, *pair(bench, "tiny_"), *settings, pairs="short", length=64)
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        losses.append([line["loss"] for line in lines if "loss" in line])
    return {"largest_difference": max(abs(one - other) for one, other in zip(*losses, strict=True))}


def pair(bench: Bench, prefix: str = "") -> tuple[str, str]:
    return f"student.path={bench.work}/{prefix}student", f"teacher.path={bench.work}/{prefix}teacher"


# What is changed of the defaults, under which layers are compiled and attention has no mask.
LADDER = {
    "none": ("training.activation_checkpointing=none",),
    "eager": ("training.activation_checkpointing=none", "training.compile=false"),
    "mask": ("training.activation_checkpointing=none", "training.compile=false", "training.attention=mask"),
    "selective": ("training.activation_checkpointing=selective",),
    "full": ("training.activation_checkpointing=full",),
}


def training(bench: Bench, *settings: str) -> dict[str, Any]:
    """Student alone, all weights: recipe dpo, with the eight microbatches of a step that its config has."""
    if not bench.smoke:
        settings = ("training.batch_size=32", "training.max_steps=4", *settings)
    return bench.train("dpo", f"{PAIR}/dpo", f"model.path={bench.work}/student", "lora=null", *settings)


def teacher(bench: Bench, kind: Any) -> dict[str, Any]:
    """A live teacher next to the student, by how its weights are stored."""
    config = TeacherConfig("owner/name", quantization=kind)
    problem = next(quantization_problems(kind, config.torch_dtype, bench.device.type), None)
    if problem is not None:
        return {"refused": problem.text}
    settings = [*pair(bench), f"teacher.quantization={kind}"]
    if kind not in ("none", "float8"):
        settings.append("training.compile=false")  # it would take longer than all steps
    return bench.train("tis_dpo_distill", f"{PAIR}/tis_dpo_distill", *settings)


@contextlib.contextmanager
def small_card(bench: Bench) -> Iterator[str]:
    """Inside, there is no more memory than a card of 24 GB has; the setting by which a run takes it for one."""
    if bench.device.type == "cuda":
        whole = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(CARD * GIB / whole, 1.0))
    try:
        yield f"training.chunk_size={logit_rows(world.QWEN_1_5B['vocab_size'], CARD * GIB)}"
    finally:
        if bench.device.type == "cuda":
            torch.cuda.set_per_process_memory_fraction(1.0)


def live(bench: Bench) -> dict[str, Any]:
    """The config for one card of 24 GB with a live teacher."""
    name = f"{PAIR}_24gb/tis_dpo_distill"
    with small_card(bench) as setting:
        found = bench.train("tis_dpo_distill", name, *pair(bench), setting)
    return found | {"planned_gib": bench.planned("tis_dpo_distill", name, *pair(bench), setting)}


def score(bench: Bench) -> dict[str, float]:
    """Recipe score on such a card."""
    began, device = time.perf_counter(), f"device={bench.device.type}"
    with small_card(bench):
        bench.whole("score", bench.work / "scored", *pair(bench), device, pairs="few", length=bench.length)
    return {"seconds": time.perf_counter() - began}


def on_scores(bench: Bench) -> dict[str, Any]:
    """The config for such a card with what `score` has written."""
    few, name = bench.data("few", bench.length), f"{PAIR}_24gb/tis_dpo_distill_scores"
    with small_card(bench) as setting:
        scores = f"teacher.scores={bench.work}/scored/scores"
        return bench.train("tis_dpo_distill", name, pair(bench)[0], scores, *few, setting)


def main() -> None:
    arguments = tyro.cli(Arguments, description=__doc__)
    arguments.out = arguments.out.absolute()
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "log.txt").write_text("")
    device = torch.device("cuda" if torch.cuda.is_available() and not arguments.smoke else "cpu")
    # Models of 18 GB lie in main memory where there is room.
    in_memory = Path("/dev/shm")
    roomy = device.type == "cuda" and os.access(in_memory, os.W_OK) and shutil.disk_usage(in_memory).free > 24 * GIB
    began = time.perf_counter() - (time.time() - psutil.Process().create_time())
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the models do not stay in main memory
    with tempfile.TemporaryDirectory(dir=in_memory if roomy else None) as work:
        bench = Bench(arguments, Path(work), device, began)
        bench.results["arguments"] = asdict(arguments)
        if not bench.smoke:  # a kernel that hangs hears no signal
            faulthandler.dump_traceback_later(max(bench.left, 0) + 20, exit=True)
        for name, action, needs in parts(bench):
            bench.part(name, action, needs=needs)
        faulthandler.cancel_dump_traceback_later()
        print(f"{len(bench.errors)} parts failed or were left out; results in {arguments.out}/results.json")


def parts(bench: Bench) -> Iterator[tuple[str, Callable[[], Any], float]]:
    """The parts of the measurement, what matters most first, and the seconds without which none is begun."""
    ladder = ["none"] if bench.smoke else list(LADDER)
    recipes = ["tis_dpo_distill"] if bench.smoke else ["tis_dpo_distill", "dskd_distill", "dpo_distill"]
    kinds = ["nf4"] if bench.smoke else ["none", "float8", "int8", "nf4", "int4"]
    yield "environment", lambda: environment(bench), 0
    yield "ceilings", lambda: ceilings(bench), 10
    yield "attention", lambda: attention(bench), 15
    yield "varlen", lambda: varlen(bench), 10
    yield "head", lambda: head(bench, compiled=False), 15
    yield "head.compiled", lambda: head(bench, compiled=True), 20
    yield "memory", lambda: memory(bench), 15
    yield "models", lambda: models(bench), 60
    yield "training.none", lambda: training(bench, *LADDER["none"]), 60
    yield "small_card.live", lambda: live(bench), 60
    yield f"agreement.{recipes[0]}", lambda: agreement(bench, recipes[0]), 30
    for kind in ladder[1:]:
        yield f"training.{kind}", lambda kind=kind: training(bench, *LADDER[kind]), 40
    yield "small_card.score", lambda: score(bench), 40
    yield "small_card.scores", lambda: on_scores(bench), 40
    for kind in kinds:
        yield f"teachers.{kind}", lambda kind=kind: teacher(bench, kind), 50
    for recipe in recipes[1:]:
        yield f"agreement.{recipe}", lambda recipe=recipe: agreement(bench, recipe), 30


if __name__ == "__main__":
    main()
