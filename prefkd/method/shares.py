"""How sure a share is that was counted."""

import math


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a share, such as the share of pairs that a model gets right.

    Args:
        share: The measured share, between 0 and 1.
        count: Items that were looked at, 1 or more.

    Returns:
        The lowest and the highest share that would not be a surprise. They stay between 0 and 1, also where the share
        is one of these.

    Source: the score interval, Wilson 1927, doi 10.1080/01621459.1927.10502953.
    """
    z = 1.959964  # of the normal distribution, 95 % lies within so many standard deviations
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2)) / (1 + z**2 / count)
    # Rounding must not put an end on the wrong side of a share of exactly 0 or 1.
    return min(max(centre - half, 0.0), share), max(min(centre + half, 1.0), share)
