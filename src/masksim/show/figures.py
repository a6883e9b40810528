"""The rates of a detection as a figure of matplotlib, which is the extra ``plot``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from masksim.errors import extra_missing
from masksim.provenance.untrusted_text import printable
from masksim.verdict import LEVELS, format_rate

if TYPE_CHECKING:
    from masksim.results import Detection

__all__ = ["new_figure", "rates_figure"]


def new_figure(width: float, height: float, what: str = "drawing pictures") -> Any:
    """Make an empty figure that need not be closed: it is none of pyplot's.

    Parameters
    ----------
    width, height
        Inches.
    what
        What it is for, for the message.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    UsageError
        matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise extra_missing(what, "matplotlib", "plot") from error
    return Figure(figsize=(width, height), layout="constrained")


def rates_figure(detection: Detection) -> Any:
    """Draw the false-positive rate of each generator, and where the verdict's levels begin.

    Parameters
    ----------
    detection
        From `masksim.detector.Detector.detect`; of an uncalibrated detector the similarities are
        drawn instead.

    Returns
    -------
    matplotlib.figure.Figure
        Not of pyplot: nothing has to be closed.

    Raises
    ------
    UsageError
        matplotlib is not installed.
    """
    scores = detection.scores[::-1]  # the most telling on top
    names = [_plain(score.generator) for score in scores]
    figure = new_figure(7.0, 1.4 + 0.32 * len(scores), "this picture")
    axes = figure.subplots()
    rates = [s.false_positive_rate for s in scores if s.false_positive_rate is not None]
    if len(rates) < len(scores):
        axes.barh(names, [score.similarity for score in scores], color="#3b7dc4")
        axes.set_xlabel("similarity (this detector is not calibrated)")
    else:
        axes.plot(rates, range(len(rates)), "o", color="#1f5fa8", zorder=3)
        axes.hlines(range(len(rates)), rates, 1.0, color="#9dbbe0", linewidth=6)
        axes.set_yticks(range(len(names)), names)
        axes.set_xscale("log")
        axes.set_xlim(min(*rates, LEVELS[0][0]) / 2, 1.0)
        for limit, _ in LEVELS:
            axes.axvline(limit, color="#888888", linewidth=0.8, linestyle=":")
        joint = detection.verdict.false_positive_rate
        if joint is not None:
            axes.axvline(joint, color="#a33b20", linewidth=1.5)
            axes.set_title(
                f"{detection.verdict.level}: {format_rate(joint, detection.verdict.sample_size)} "
                "of real photos, all generators together (line)",
                fontsize="medium", loc="left",
            )  # fmt: skip
        axes.set_xlabel("share of real photos that score as high; dotted: 1, 5 and 10 %")
    return figure


def _plain(text: str) -> str:
    """Write a name so that matplotlib does not take it for a formula."""
    return printable(text).replace("$", r"\$")
