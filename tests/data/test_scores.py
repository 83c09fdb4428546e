"""Folders of scores that are not what recipe score wrote."""

import json

import pytest

from prefkd.data.scores import FINGERPRINT, VERSION, scores_problems

SOUND = {
    "version": VERSION,
    "pairs_per_shard": 4,
    "train.pairs": 0,
    "held_out.pairs": 0,
}
DAMAGED = {
    "empty": b"",
    "not UTF-8": b"\xff",
    "a list": b"[]",
    "nothing in it": b"{}",
    "nested": b"[" * 100_000,
    **{f"no {key}": json.dumps({name: SOUND[name] for name in SOUND if name != key}).encode() for key in SOUND},
    "no pairs in a shard": json.dumps(SOUND | {"pairs_per_shard": 0}).encode(),
    "text for a count": json.dumps(SOUND | {"train.pairs": "4"}).encode(),
    "fewer pairs than none": json.dumps(SOUND | {"held_out.pairs": -1}).encode(),
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_fingerprint_is_one_line(tmp_path, content):
    (tmp_path / FINGERPRINT).write_bytes(content)
    (problem,) = scores_problems(tmp_path, "teacher.scores")
    assert str(problem) == (f"teacher.scores: {tmp_path}/{FINGERPRINT} is damaged; remove {tmp_path} and score again")


def test_a_sound_one_and_one_of_another_version(tmp_path):
    (tmp_path / FINGERPRINT).write_text(json.dumps(SOUND))
    assert not [*scores_problems(tmp_path)]
    (tmp_path / FINGERPRINT).write_text(json.dumps(SOUND | {"version": VERSION + 1}))
    (problem,) = scores_problems(tmp_path)
    assert "was written by another version of prefkd" in problem.text
