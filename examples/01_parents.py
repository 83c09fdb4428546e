"""The parent tokens of a text: the finest pieces whose boundaries are token boundaries in both tokenizers.

python examples/01_parents.py models/student models/teacher "Unbelievable: Wellington's harbour froze."
"""

import sys

from transformers import AutoTokenizer

from prefkd.method.parent_tokens import find_parents


def main(student: str, teacher: str, text: str) -> None:
    sides = [
        AutoTokenizer.from_pretrained(path)(text, add_special_tokens=False, return_offsets_mapping=True)
        for path in (student, teacher)
    ]
    own, other = (side["offset_mapping"] for side in sides)
    parents = find_parents(own, other, len(text), text)
    for name, side in zip(("student", "teacher"), sides, strict=True):
        print(f"{name:8}", "|".join(text[start:end] for start, end in side["offset_mapping"]))
    print(f"{'parents':8}", "|".join(text[start:end] for start, end in parents[:, :2]))


if __name__ == "__main__":
    main(*sys.argv[1:])
