"""Draw docs/architecture.svg: the rooms of prefkd, each above those that it may import.

    python docs/make_pictures.py

The floors are those that tests/test_house.py enforces.
"""

from html import escape
from pathlib import Path

# From the ground up; room -> what is in it.
FLOORS: tuple[dict[str, str], ...] = (
    {
        "method": "the maths",
        "errors": "a mistake in one line",
        "files": "whole or not at all",
        "keys": "of the Hub and of services",
    },
    {"catalog": "shipped recipes and configs", "terminal": "tables and lines of output"},
    {"config": "YAML and overrides to a dataclass"},
    {"ranks": "one process or many"},
    {"data": "rows, pairs, aligned tokens, batches"},
    {"weighting": "scores to weights of parents"},
    {"models": "loading, log-probs, teachers, LoRA, shards"},
    {"demo": "the demo models"},
    {"training": "terms, optimizer, checkpoints, export"},
    {"reports": "pages and tables", "pipeline": "chains of recipes"},
    {"estimate": "what a run needs", "evaluation": "what got better"},
    {"candidates": "sampled answers to pairs", "proposal": "a config for your models"},
    {"cli": "one module a verb"},
)
WIDTH, HEIGHT, GAP = 720, 40, 6


def draw(floors: tuple[dict[str, str], ...] = FLOORS) -> str:
    """The picture as SVG."""
    rows = [{"recipes": "one file, one training loop: may use everything below"}, *reversed(floors)]
    boxes = []
    for place, rooms in enumerate(rows):
        width = (WIDTH - GAP * (len(rooms) - 1)) / len(rooms)
        for i, (name, text) in enumerate(rooms.items()):
            x, y = i * (width + GAP), place * (HEIGHT + GAP)
            fill = "#dfebf7" if place else "#fbd3a0"
            frame = f'width="{width:.0f}" height="{HEIGHT}" rx="4" fill="{fill}" stroke="#7a8190"'
            boxes.append(
                f'<rect x="{x:.0f}" y="{y}" {frame}/>'
                f'<text x="{x + width / 2:.0f}" y="{y + 17}" font-weight="600">{escape(name)}</text>'
                f'<text x="{x + width / 2:.0f}" y="{y + 33}" font-size="11">{escape(text)}</text>'
            )
    height = len(rows) * (HEIGHT + GAP)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif"'
    return "\n".join([f'{head} font-size="14" text-anchor="middle" fill="#1b1b1f">', *boxes, "</svg>", ""])


if __name__ == "__main__":
    Path(__file__).with_name("architecture.svg").write_text(draw(), encoding="utf-8")
