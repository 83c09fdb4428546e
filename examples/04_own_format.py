"""Rows of your own format: one function, row -> pair. Try it on a file, then train with it.

cp examples/04_own_format.py mine.py
python mine.py votes.jsonl
prefkd run dpo --config demo/dpo "data={source: votes.jsonl, reader: {_component_: mine.read_row, least: 2}}"
"""

import sys
from collections.abc import Iterator
from typing import Any

from prefkd.data.formats import Pair
from prefkd.data.messages import Message
from prefkd.data.pairs import DataConfig, load_pairs
from prefkd.data.worth import Worth


def read_row(row: dict[str, Any], least: int = 1) -> Iterator[Pair]:
    """{"post": text, "replies": [{"text", "votes"}]}: the best reply against each other, weighted by its lead.

    Args:
        row: A row as the file has it.
        least: Votes by which the best reply must lead.
    """
    best, *others = sorted(row["replies"], key=lambda reply: -reply["votes"])
    prompt = [Message(role="user", content=row["post"])]
    for other in others:
        lead = best["votes"] - other["votes"]
        if lead >= least:
            yield Pair(prompt, best["text"], other["text"], worth=Worth(weight=lead / best["votes"], gap=lead))


if __name__ == "__main__":
    reader = {"_component_": "__main__.read_row"}
    pairs = load_pairs(DataConfig(sys.argv[1], reader=reader, held_out_fraction=0.0)).train
    for pair in map(dict, pairs):
        print(f"{pair['weight']:.2f}  {pair['prompt'][-1]['content']}: {pair['chosen']} > {pair['rejected']}")
