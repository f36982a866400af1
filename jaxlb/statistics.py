"""Figures of independent lanes and their intervals: means, ratios, quantiles of completions, counted."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Interval = tuple[float, float] | None
"""A 95 % confidence interval; None where one lane, or what has not settled, gives none."""

Estimate = tuple[float, Interval]
"""A value and its interval."""

MAX_GROUPS = 128
"""Lanes are pooled into at most so many groups in a histogram of completion times."""

# Completion times are counted straight from the float's bits: of those behind the sign, eight say the octave
# and seven which of its 128 bins of equal width. Bins then are less than 1 % wide, whatever the unit of time.
_SHIFT = 23 - 7


@dataclass(frozen=True)
class Histogram:
    """Completion times, counted; from the bin of the least of them to that of the largest."""

    first: int  # the number of the first bin, counted from that of the least float
    counts: np.ndarray  # [G, bins] of each group of lanes

    @property
    def last(self) -> int:
        """The number of the last bin."""
        return self.first + self.counts.shape[1] - 1

    def over(self, first: int, last: int) -> np.ndarray:
        """Return the counts of the bins from `first` to `last`, which hold all that is counted."""
        return np.pad(self.counts, ((0, 0), (self.first - first, last - self.last)))

    def __add__(self, other: "Histogram") -> "Histogram":
        """Add both, group by group."""
        first, last = min(self.first, other.first), max(self.last, other.last)
        return Histogram(first, self.over(first, last) + other.over(first, last))


def bin_edges(first: int, last: int) -> np.ndarray:
    """Return the edges of the bins from `first` to `last`, `[bins + 1]` float64, time."""
    bits = np.arange(first, last + 2, dtype=np.int32) << _SHIFT
    return bits.view(np.float32).astype(np.float64)


def count_completions(completion: np.ndarray, groups: int, known: np.ndarray | None = None) -> Histogram:
    """Count completion times `[T, N]` float32 that are known (None: all), lanes pooled into `groups`."""
    bins = completion.view(np.int32) >> _SHIFT
    group = np.arange(completion.shape[1]) * groups // completion.shape[1]
    if known is not None:
        bins, group = bins[known], np.broadcast_to(group, completion.shape)[known]
    first = int(bins.min())
    width = int(bins.max()) - first + 1
    counts = np.bincount((group * width + (bins - first)).ravel(), minlength=groups * width)
    return Histogram(first, counts.reshape(groups, width))


def mean_interval(lanes: np.ndarray) -> Estimate:
    """Return the mean over independent lanes `[N]` and its 95 % Student interval."""
    mean, count = float(lanes.mean()), len(lanes)
    if count < 2:
        return mean, None
    half = student(count - 1, 0.975) * float(lanes.std(ddof=1)) / count**0.5
    return mean, (mean - half, mean + half)


def student(degrees: int, probability: float) -> float:
    """Return that quantile of Student's t."""
    # A tenth of a second of imports that a simulation does not need.
    from scipy.special import stdtrit

    return float(stdtrit(degrees, probability))


def ratio_interval(hits: np.ndarray, count: np.ndarray) -> Estimate:
    """Divide sums of hits by sums of counts, over lanes `[N]`; return the interval by linearisation, too."""
    total = count.sum()
    if total == 0:
        return 0.0, None
    rate = float(hits.sum() / total)
    _, interval = mean_interval(hits - rate * count)
    if interval is None:
        return rate, None
    half = interval[1] / count.mean()
    return rate, (rate - half, rate + half)


def quantile_interval(histogram: Histogram, probability: float) -> Estimate:
    """Estimate a quantile of pooled completion times, with Woodruff's (1952) interval over groups of lanes.

    Args:
      histogram: of the completion times.
      probability: of the quantile.

    Returns:
      The quantile, linear within its bin (less than 1 % wide), and its interval.
    """
    edges = bin_edges(histogram.first, histogram.last)
    counts = histogram.counts.sum(0)
    pooled = np.concatenate([[0.0], np.cumsum(counts) / counts.sum()])

    def quantile(p: float) -> float:
        # The last edge at which the distribution is still at or below p, then linear in its bin.
        low = min(int(np.searchsorted(pooled, p, side="right")) - 1, len(counts) - 1)
        mass = pooled[low + 1] - pooled[low]
        part = (p - pooled[low]) / mass if mass > 0 else 0.0
        return float(edges[low] + part * (edges[low + 1] - edges[low]))

    value = quantile(probability)
    below = np.stack([np.interp(value, edges, np.append(0, np.cumsum(group))) for group in histogram.counts])
    _, interval = ratio_interval(below, histogram.counts.sum(1).astype(np.float64))
    if interval is None:
        return value, None
    half = 0.5 * (interval[1] - interval[0])
    return value, (quantile(max(probability - half, 0.0)), quantile(min(probability + half, 1.0)))


def plus_minus(value: float, interval: Interval, scale: float = 1.0) -> str:
    """Write a value and its half width, to four figures and as many decimals."""
    half = 0.0 if interval is None else scale * 0.5 * (interval[1] - interval[0])
    value = scale * value
    size = max(abs(value), half)
    if size and not 1e-3 <= size < 1e7:
        shown, half_shown = f"{value:.3e}", f"{half:.1e}"
    else:
        digits = 4 if size < 1 else 3 if size < 10 else 2 if size < 100 else 1
        shown, half_shown = f"{value:,.{digits}f}", f"{half:,.{digits}f}"
    return shown if interval is None else f"{shown} ±{half_shown}"


_LATEX = str.maketrans(
    {letter: f"\\{letter}" for letter in "%&#_${}"}
    | {"±": r"\textpm{}", "\\": r"\textbackslash{}"}
    | {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
)


def latex(text: str) -> str:
    """Write text as LaTeX has it."""
    return text.translate(_LATEX)


def latex_table(lines: Sequence[Sequence[str]]) -> str:
    """Write lines of text, the first of headings, as a LaTeX table."""
    head, *body = (" & ".join(map(latex, line)) + r" \\" for line in lines)
    frame = [rf"\begin{{tabular}}{{l{'r' * (len(lines[0]) - 1)}}}", r"\toprule", head, r"\midrule", *body]
    return "\n".join([*frame, r"\bottomrule", r"\end{tabular}"]) + "\n"
