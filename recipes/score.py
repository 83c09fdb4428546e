"""Let the teacher score pairs once, so that students can be trained without it: log-probs of parents, on disk.

Three numbers for each parent of every answer: its log-prob under the reference, under pi+ and under pi-; and with
`keep` the most probable next tokens, for terms that compare distributions, or hidden states, for those that project
them. The reference is the teacher; pi+ and pi- are the teacher under two instructions, or two models trained on, or
trained to prefer, opposite answers. Their difference is what importance weights are made of, as settings of the
training: one scoring serves all of them. CTPD, arXiv 2601.11865; TIS-DPO, arXiv 2410.04350.

    prefkd run score --config demo/score

After a kill, the same command resumes where it left off. With several processes, each scores a part of every shard.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from datasets import Dataset

from prefkd.config import save_config
from prefkd.config.hints import size_problems
from prefkd.data.batches import PairBatch
from prefkd.data.collate import collate_pairs
from prefkd.data.fingerprints import pairs_fingerprint, reading_fingerprint
from prefkd.data.pairs import DataConfig, load_pairs
from prefkd.data.rows import INSTRUCTIONS, count_scored
from prefkd.data.scores import HEAD, Shard, begin_scores, is_finished, open_scores, plan_shards, write_shard
from prefkd.data.sides import ModelSide
from prefkd.data.steps import Microbatch, learner_tokens, pair_lengths
from prefkd.data.tokenizing import align_pairs
from prefkd.errors import PrefkdError, Problem
from prefkd.models.contrast import (
    ContrastConfig,
    fewest_embeddings,
    fewest_positions,
    model_fingerprint,
    require_one_tokenizer,
)
from prefkd.models.keep_config import KeepConfig
from prefkd.models.kept_states import save_head
from prefkd.models.load import ModelConfig, TeacherConfig, load_tokenizer
from prefkd.models.questions import Asks
from prefkd.models.teacher import Teacher
from prefkd.models.varlen import Attention
from prefkd.ranks import Ranks, join_ranks
from prefkd.reports.weights import weight_table, write_weight_report
from prefkd.training.display import Display
from prefkd.training.run import Portions, ahead
from prefkd.training.settings import folder_problems, kernel_problems
from prefkd.weighting import WeightConfig


@dataclass
class Config:
    """All settings of a run; the YAML file and the key=value overrides are laid over these defaults.

    Attributes:
        output_dir: Folder of the scores, the resolved config and, with a contrast, a report on the weights.
        student: The model that will be trained. Its tokenizer alone is read: parents depend on both tokenizers.
        teacher: The reference.
        contrast: pi+ and pi-.
        keep: Next-token distributions and hidden states that are kept; null = none.
        pairs_per_shard: Pairs of one file, which is what a killed run has to compute again.
        microbatch_size: Pairs of one forward pass.
        microbatch_tokens: Instead, tokens of one forward pass at most, as the teacher reads them under its own prompt,
            so that all processes have the same work.
        chunk_size: Target tokens whose logits exist at one time; null = as many as the device has room for.
        attention, compile: How tokens attend, and whether layers are compiled, as in a training.
        device: `auto` takes the GPU where there is one.
    """

    output_dir: Path
    student: ModelConfig
    teacher: TeacherConfig
    data: DataConfig
    contrast: ContrastConfig = field(default_factory=ContrastConfig)
    keep: KeepConfig | None = None
    pairs_per_shard: int = 256
    microbatch_size: int = 8
    microbatch_tokens: int | None = None
    chunk_size: int | None = None
    attention: Attention = "auto"
    compile: bool | Literal["auto"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def outputs(self) -> tuple[str, ...]:
        """What a later stage of a pipeline can build on."""
        return ("scores",)

    def problems(self) -> Iterator[Problem | str]:
        yield from size_problems(self, "pairs_per_shard", "microbatch_size", "microbatch_tokens", "chunk_size")
        yield from folder_problems(self.output_dir)
        if self.device == "cuda" and not torch.cuda.is_available():
            yield "device: cuda is not available here; use auto or cpu"
        yield from kernel_problems(self, self.teacher.dtype)
        if self.keep and any(model.server for model in (self.teacher, *self.contrast.models.values())):
            yield "keep: a server has neither distributions nor states; use models in memory (path), or remove keep"
        if self.keep and "positive" in self.keep.distributions and self.contrast.kind == "none":
            yield "keep.models: positive is pi+ of a contrast, and contrast.kind is none; remove it, or name a contrast"


@dataclass
class Models:
    """The teacher with pi+ and pi-, and how it reads pairs."""

    teacher: Teacher
    collate: Callable[[Dataset, Microbatch], PairBatch]


@dataclass
class Data:
    """The pairs, and which of their scores are still missing.

    Attributes:
        aligned: The splits, aligned for student and teacher.
        sides: How the two read.
        folder: Where the scores are.
        planned: All shards.
        shards: Shards that are not finished.
        portions: How rows are shared out among forward passes.
        description, kept: Lines for the terminal.
        lacks_head: Whether the layers that read hidden states are still to be kept.
    """

    aligned: dict[str, Dataset]
    sides: dict[str, ModelSide]
    folder: Path
    planned: list[Shard]
    shards: list[Shard]
    portions: Portions
    description: str
    kept: str
    lacks_head: bool


@dataclass
class Run(Data, Models):
    """What `setup` prepares and `score` uses."""

    ranks: Ranks
    display: Display


def load_data(config: Config, ranks: Ranks) -> Data:
    """Read and align the pairs, and see what is scored already."""
    folder = config.output_dir / "scores"
    readers = (config.teacher, *config.contrast.models.values())
    embeddings, positions = fewest_embeddings(readers), fewest_positions(readers)
    if config.keep and embeddings is not None:
        config.keep.require(embeddings)
    sides = {
        "student": ModelSide(load_tokenizer(config.student), config.student.template),
        "teacher": ModelSide(
            load_tokenizer(config.teacher), config.teacher.template, embeddings=embeddings, positions=positions
        ),
    }
    require_one_tokenizer(sides["teacher"], config.contrast.models)
    align = partial(align_pairs, **sides, config=config.data, contrast=config.contrast.instructions)
    with ranks.main_first():
        pairs = load_pairs(config.data)
        aligned = {"train": align(pairs.train), "held_out": align(pairs.held_out)}
        if not len(aligned["train"]):
            raise PrefkdError("no pair is left after truncation; raise data.max_length")
        count = partial(learner_tokens, shares_prompt=config.teacher.share_prompt, side="teacher")
        portions = Portions.of(config, count, name="", **aligned)
        parts = reading_fingerprint(config.data, **sides) | model_fingerprint("teacher", config.teacher)
        parts |= config.contrast.fingerprint() | pairs_fingerprint(aligned)
        parts |= {"pairs_per_shard": config.pairs_per_shard}
        parts |= config.keep.fingerprint(embeddings) if config.keep else {"keep.models": None}
        planned = plan_shards(parts)
        shards = [shard for shard in planned if not is_finished(folder, shard)]
        lacks_head = config.keep is not None and config.keep.states and not (folder / HEAD).is_file()
        kept = "log-probs of parents"
        if config.keep:
            _, tokens, chosen = map(sum, zip(*map(count_scored, aligned.values()), strict=True))
            left = sum(len(shard.rows) for shard in shards) / sum(map(len, aligned.values()))
            kept += f"; {config.keep.describe(config.teacher, folder, tokens, chosen, left)}"
        if ranks.is_main:
            begin_scores(folder, parts, sides["teacher"].tokenizer)
            save_config(config, config.output_dir / "config.yaml")
    ranks.wait()  # none writes while another still looks
    description = f"{len(aligned['train'])} pairs to train on, {len(aligned['held_out'])} held out, {pairs.omissions}"
    return Data(aligned, sides, folder, planned, shards, portions, description, kept, lacks_head)


def load_models(config: Config, ranks: Ranks) -> Models:
    """The teacher, and pi+ and pi- as the contrast has them. Their weights come with `load`."""
    contrast = config.contrast
    kept = config.keep.asked if config.keep else ()
    states = tuple(name for name in INSTRUCTIONS if name in kept)
    asks = Asks(True, contrast.instructions, contrast.models, states="teacher" in kept, contrast_states=states)
    shares, teacher = (config.student.share_prompt, config.teacher.share_prompt), Teacher(config.teacher, asks)
    return Models(teacher, partial(collate_pairs, share_prompt=shares, together=teacher.together))


def setup(config: Config, ranks: Ranks) -> Run:
    """Load the data, load the models if something is left to be scored, and say what is going to happen."""
    display = Display(ranks)
    data = load_data(config, ranks)
    models = load_models(config, ranks)
    left, planned, teacher = len(data.shards), len(data.planned), f"{config.teacher.label}, not needed any more"
    if left or data.lacks_head:
        probe = models.collate(data.aligned["train"], Microbatch([0])).to(ranks.device)
        reading = {"chunk_size": config.chunk_size, "attention": config.attention, "compile": config.compile}
        models.teacher.load(probe.teacher, ranks=ranks, **reading)
        teacher = f"{models.teacher.description} on {ranks.device}"
        if data.lacks_head:
            save_head(data.folder, models.teacher.models[0], config.teacher, probe.teacher, ranks)
    display.table(
        "score",
        {
            "teacher": teacher,
            "contrast": config.contrast.kind,
            **{name: f"{model.label}  {model.adapter or ''}" for name, model in config.contrast.models.items()},
            "data": data.description,
            "kept": data.kept,
            "plan": f"{left} of {planned} shards on {ranks.processes}"
            + (", the others are finished" if left < planned else ""),
            "output": data.folder,
        },
    )
    return Run(**vars(data), **vars(models), ranks=ranks, display=display)


def score(config: Config, run: Run) -> None:
    """Score the shards, each written when it is whole."""
    ranks = run.ranks
    lengths = {split: pair_lengths(aligned) for split, aligned in run.aligned.items()}
    began, done = time.perf_counter(), 0
    with run.display.progress(sum(len(shard.rows) for shard in run.shards)) as bar:
        for shard in run.shards:
            # --------------------------------------------------------------------------------------------- one shard
            aligned, scores = run.aligned[shard.split], {}
            longest_first = sorted(shard.rows, key=lengths[shard.split].__getitem__, reverse=True)
            microbatches = run.portions.split(shard.split, longest_first, ranks)
            batches = ahead(partial(run.collate, aligned), microbatches, ranks.device)
            for microbatch, batch in zip(microbatches, batches, strict=True):
                heard = run.teacher.read(batch)
                assert heard.scores is not None, "a reference is asked for"
                columns = heard.scores.columns(batch.parent_mask)
                if config.keep:
                    kept = config.keep.columns(heard.states, run.sides["teacher"].embeddings, len(columns))
                    columns = [left | right for left, right in zip(columns, kept, strict=True)]
                counted = len(columns) - microbatch.fillers
                scores |= zip(microbatch.rows[:counted], columns[:counted], strict=True)
                done += counted * ranks.world_size
                bar.advance(f"{done / (time.perf_counter() - began):.1f} pairs/s", steps=counted * ranks.world_size)
            parts = ranks.gather(scores)
            if ranks.is_main:
                write_shard(run.folder, shard, aligned, {row: own for part in parts for row, own in part.items()})
            # ------------------------------------------------------------------------------------------------------
    ranks.wait()


def save(config: Config, run: Run) -> dict[str, object]:
    """Report on the weights that the scores make by default, and say what was written."""
    files = sorted(run.folder.rglob("*.parquet"))
    size = sum(file.stat().st_size for file in files)
    parents, tokens, _ = map(sum, zip(*map(count_scored, run.aligned.values()), strict=True))
    written: dict[str, object] = {
        "scores": run.folder,
        "size": f"{parents:,} parents in {len(files)} shards, {size / 1e6:.1f} MB, {size / parents:.1f} bytes a parent"
        + (f", {size / tokens:.0f} bytes a token of the teacher" if config.keep else ""),
        "config": config.output_dir / "config.yaml",
    }
    if config.contrast.kind != "none" and config.data.has_rivals:
        scored = open_scores(run.folder).attach(run.aligned["train"], "train")
        numbers = write_weight_report(config.output_dir, scored, WeightConfig(contrast="scores"), **run.sides)
        run.display.console.print(weight_table(numbers))
        written["weights"] = config.output_dir / "weight_report.html"
    return written


def main(config: Config) -> None:
    """Run the recipe."""
    with join_ranks(config.device) as ranks:
        run = setup(config, ranks)
        score(config, run)
        if ranks.is_main:
            run.display.table("result", save(config, run))
            contrast = "uniform" if config.contrast.kind == "none" else "scores"
            rivals = config.data.has_rivals
            run.display.say(
                f"next, with your config in place of CONFIG: prefkd run {'tis_dpo' if rivals else 'dskd'}_distill "
                f"--config CONFIG ~teacher.path teacher.scores={run.folder}"
                + (f" weights.contrast={contrast}" if rivals else "")
            )
