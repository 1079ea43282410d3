"""One sentence on a comparison, from the perplexity ratio and its interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

CLOSE_RATIO = 1.02
USABLE_RATIO = 1.10


@dataclass(frozen=True)
class Verdict:
    """A judgement in words.

    Attributes:
        level: For the colour of the mark beside it.
        sentence: What it says.
    """

    level: Literal["good", "fair", "bad"]
    sentence: str


def judge(ratio: float, interval: Sequence[float], kl: float, noise_kl: float | None = None) -> Verdict:
    """Returns the verdict on a candidate.

    Top-1 agreement and logits play no part: they move with the last bit of an INT8 model, perplexity does not.

    Args:
        ratio: Candidate's perplexity over the reference's.
        interval: Its 95 % interval.
        kl: Mean KL divergence, in nats.
        noise_kl: The same between the candidate and itself moved a little, or None where it was not measured.
    """
    change = (ratio - 1) * 100
    size = f"{abs(change):.1f} % {'higher' if change >= 0 else 'lower'}"
    certain = "" if interval[0] > 1 or interval[1] < 1 else "; the interval over windows includes no difference at all"
    floor = f"; noise floor {noise_kl:.4f}" if noise_kl is not None else ""
    figures = f"Its perplexity is {size} than the reference's (KL {kl:.4f} nats{floor}){certain}."
    if ratio <= CLOSE_RATIO:
        return Verdict("good", f"Close to the reference. {figures}")
    if ratio <= USABLE_RATIO:
        return Verdict("fair", f"A small, measurable loss. {figures}")
    return Verdict("bad", f"A clear loss. {figures}")
