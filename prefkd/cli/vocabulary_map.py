"""`prefkd vocabulary-map`."""

from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from prefkd.cli.output import hush_libraries, say
from prefkd.errors import PrefkdError, Problem


def vocabulary_map(
    student: Annotated[str, arg(metavar="STUDENT")],
    teacher: Annotated[str, arg(metavar="TEACHER")],
    /,
    *,
    output: Annotated[Path, arg(metavar="FILE")],
) -> None:
    """Find the student's token that is spelt most like each of the teacher's, for the term min_ed of an objective.

    For example:
        prefkd vocabulary-map models/demo-student models/smollm2-135m-instruct --output models/demo-map.safetensors

    Args:
        student: Folder of the student, or a Hub id owner/name. Only the tokenizer is read.
        teacher: Folder of the teacher, or a Hub id owner/name.
        output: File to write, safetensors. Folders on the way are made.
    """
    if output.exists():
        raise PrefkdError(f"{output} is already there; name another file, or remove it")

    from functools import partial

    from rich.progress import track

    from prefkd.data.vocabulary import Vocabularies, write_vocabulary_map
    from prefkd.models.load import ModelConfig, load_tokenizer

    hush_libraries()
    configs = ModelConfig(student), ModelConfig(teacher)
    for config in configs:
        if not Path(config.path).is_dir():  # a folder with a tokenizer and no weights will do
            for problem in config.problems():
                raise PrefkdError(Problem.of(problem).text)
    vocabularies = Vocabularies.of(load_tokenizer(configs[0]), load_tokenizer(configs[1]))
    found = write_vocabulary_map(output, vocabularies, partial(track, description="mapping the teacher's tokens"))
    same = sum(
        vocabularies.student[own] == text for own, text in zip(found.tolist(), vocabularies.teacher, strict=True)
    )
    say(f"wrote {output}: {len(found)} tokens of the teacher, {same} of which the student has too")
