"""A recipe that joins texts into a file, with which pipelines are tried out."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from prefkd.errors import PrefkdError, Problem


@dataclass
class Config:
    output_dir: Path
    sources: list[str] = field(default_factory=list)
    text: str = ""
    act: Literal["finish", "user", "bug", "killed", "sleep"] = "finish"
    resumes: bool = False

    def problems(self) -> Iterator[Problem | str]:
        for source in self.sources:
            if not Path(source).is_file():
                yield Problem("sources", f"no file {source}; write it", paths=(Path(source),))
        if not self.resumes and (self.output_dir / "metrics.jsonl").exists():
            yield f"output_dir: {self.output_dir} holds an earlier run; name another folder"

    def outputs(self) -> Iterator[str]:
        yield "joined.txt"


def main(config: Config) -> None:
    config.output_dir.mkdir(parents=True, exist_ok=True)
    rank = os.environ.get("RANK")
    sys.stdout.write(f"process {os.getpid()} of rank {rank}: {config.text}\n")
    sys.stdout.flush()
    if rank is None:  # several processes would have to wait for each other before one of them writes
        with (config.output_dir / "metrics.jsonl").open("a") as metrics:
            metrics.write("{}\n")
    if not Path("mended").exists():
        match config.act:
            case "user":
                raise PrefkdError("the text is too short; write more")
            case "bug":
                raise RuntimeError("a mistake in the program")
            case "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            case "sleep":
                time.sleep(60)
    joined = "".join(Path(source).read_text() for source in config.sources) + config.text
    (config.output_dir / "joined.txt").write_text(joined)
