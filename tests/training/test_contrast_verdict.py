"""A contrast is called what it is: one that knows, one that knows nothing, one that is wrong."""

import pytest

from prefkd.training.contrast_verdict import judge_contrast
from prefkd.training.metrics import describe


@pytest.mark.parametrize(
    ("share", "pairs", "verdict"),
    [
        (0.462, 240, "tells nothing"),
        (0.5, 10, "tells nothing"),
        (0.6, 20, "tells nothing"),
        (0.6, 240, "tells apart"),
        (0.53, 5000, "tells apart"),
        (0.4, 240, "the wrong way round"),
        (0.0, 20, "the wrong way round"),
        (1.0, 1, "tells nothing"),
        (1.0, 20, "tells apart"),
    ],
)
def test_verdicts(share, pairs, verdict):
    judged = judge_contrast(share, pairs)
    assert judged.verdict == verdict and judged.low <= share <= judged.high
    assert (judged.advice == "") == (verdict == "tells apart")
    if judged.advice:
        assert "weights.contrast=uniform" in judged.advice and "data.reverse=true" in judged.advice


def test_the_sentence():
    assert str(judge_contrast(0.4625, 240)).startswith(
        "tells nothing: the chosen answer is found better in 46.2% of 240 pairs (95 % interval 40.1% to 52.6%; "
        "chance is 50 %). Its weights are noise: train pi+ and pi- "
    )


HELD_OUT = {"held_out/loss": 0.7, "held_out/accuracy": 0.5, "held_out/logprob_accuracy": 0.5, "held_out/saturated": 0.0}


def test_the_verdict_stands_in_a_line_of_its_own_before_training():
    metrics = HELD_OUT | {"held_out/contrast_accuracy": 0.4}
    first, second = describe(metrics, 240).splitlines()
    assert first == describe(HELD_OUT) and second.startswith("contrast the wrong way round: ")


@pytest.mark.parametrize(
    ("metrics", "pairs"), [(HELD_OUT, 240), ({}, 0), (HELD_OUT | {"held_out/contrast_accuracy": 0.4}, None)]
)
def test_no_contrast_no_verdict(metrics, pairs):
    assert "contrast" not in describe(metrics, pairs)
