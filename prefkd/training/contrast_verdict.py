"""Whether a contrast knows which answers are better: weights that it makes are worth no more than that."""

from dataclasses import dataclass
from typing import Literal

from prefkd.method.shares import wilson_interval

_ADVICE = {
    "tells apart": "",
    "tells nothing": (
        "Its weights are noise: train pi+ and pi- (recipe dpo, and dpo with data.reverse=true) and score with "
        "contrast.kind=models, or use weights.contrast=uniform."
    ),
    "the wrong way round": (
        "Its weights teach the opposite: exchange positive and negative, train pi+ and pi- (recipe dpo, and dpo with "
        "data.reverse=true), or use weights.contrast=uniform."
    ),
}


@dataclass(frozen=True)
class ContrastVerdict:
    """A judgement of pi+ and pi-.

    Attributes:
        verdict: Whether pairs that they order rightly are more or fewer than chance would give, beyond doubt.
        share: Share of the pairs whose chosen answer has the higher sum over its parents of log pi+ - log pi-; a pair
            without a difference counts as a half.
        low, high: The 95 % interval of the share.
        pairs: Pairs that were read.
    """

    verdict: Literal["tells apart", "tells nothing", "the wrong way round"]
    share: float
    low: float
    high: float
    pairs: int

    @property
    def summary(self) -> str:
        """The verdict and what it rests on."""
        return (
            f"{self.verdict}: the chosen answer is found better in {self.share:.1%} of {self.pairs:,} pairs "
            f"(95 % interval {self.low:.1%} to {self.high:.1%}; chance is 50 %)."
        )

    @property
    def advice(self) -> str:
        """What to do; empty where nothing is wrong."""
        return _ADVICE[self.verdict]

    def __str__(self) -> str:
        return f"{self.summary} {self.advice}".rstrip()


def judge_contrast(share: float, pairs: int) -> ContrastVerdict:
    """Judge a contrast by the share of pairs, one or more, in which it finds the chosen answer better."""
    low, high = wilson_interval(share, pairs)
    verdict = "tells apart" if low > 0.5 else "the wrong way round" if high < 0.5 else "tells nothing"
    return ContrastVerdict(verdict, share, low, high, pairs)
