"""Each mark of a drawing on matplotlib's axes, and what both renderers ask of marks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.drawing import Bars, Dots, Drawing, Heat, Line, Look, Mark, Panel, Reference, Spread, Values
from analysis.palette import DIVERGING, SEQUENTIAL

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable

DASHES: dict[str, Any] = {"solid": "-", "dashed": (0, (4.5, 2.2)), "dotted": (0, (1.2, 1.6))}
HATCHES = {"solid": "", "dashed": "///", "dotted": "..."}  # bars have no dash: grey prints tell them apart by these
BAND_ALPHA, MARKER = 0.18, 6.0
JITTER = 0.35  # of a spread's width
Limits = tuple[float, float]


def colour_limits(panel: Panel) -> Limits | None:
    """The range of the panel's coloured dots, or what it gives as that; None if there are none, or none that is finite."""
    given = [mark.by for mark in panel.marks if isinstance(mark, Dots) and mark.by is not None]
    known = np.concatenate(given) if given else np.zeros(0)
    known = known[np.isfinite(known)]
    return (panel.colour_limits or (float(known.min()), float(known.max()))) if len(known) else None


def heat_limits(heat: Heat) -> Limits:
    """The ends of a heat's colours: given, or of its cells, zero in the middle if it diverges."""
    if heat.limits is not None:
        return heat.limits
    known = heat.cells[np.isfinite(heat.cells)]
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    widest = max(abs(low), abs(high)) or 1.0
    return (-widest, widest) if heat.diverging else (low, high)


def needs_colour_bar(panel: Panel) -> bool:
    return any(isinstance(mark, Heat) for mark in panel.marks) or colour_limits(panel) is not None


def legend_entries(drawing: Drawing) -> dict[str, Mark]:
    """The marks that the legend explains, one per label; nothing if the drawing wants none or one mark would stand alone."""
    found = {
        mark.label: mark
        for panel in reversed(drawing.panels)
        for mark in reversed(panel.marks)
        if not isinstance(mark, Heat | Reference) and mark.in_legend and mark.label
    }
    return dict(reversed(found.items())) if drawing.legend and len(found) > 1 else {}


def tick_step(names: Sequence[str], most: int) -> int:
    """Every how many names one is written."""
    return max(1, -(-len(names) // most))


def spread_jitter(mark: Spread) -> Values:
    """Where the samples of a spread are drawn beside its place: drawn from a generator of its own, the same every time."""
    return mark.at + mark.width * JITTER * np.random.default_rng(len(mark.samples)).uniform(-1, 1, len(mark.samples))


def draw(axes: Axes, mark: Mark, scale: Limits | None) -> ScalarMappable | None:
    """Draw a mark; what a colour bar can be made of, if it is coloured by numbers."""
    match mark:
        case Line():
            _line(axes, mark)
        case Dots():
            return _dots(axes, mark, scale)
        case Spread():
            _spread(axes, mark)
        case Bars():
            _bars(axes, mark)
        case Heat():
            return _heat(axes, mark)
        case Reference():
            _reference(axes, mark)
    return None


def handle(mark: Mark) -> Artist:
    """What stands for a mark in the legend."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    look = mark.look if not isinstance(mark, Heat) else Look()
    if isinstance(mark, Bars | Spread):
        return Patch(facecolor=look.colour, edgecolor="white", hatch=HATCHES[look.dash], alpha=0.85)
    return Line2D([], [], **_stroke(look), **({"linestyle": "none"} if isinstance(mark, Dots) else {"linestyle": DASHES[look.dash]}))


def _stroke(look: Look) -> dict[str, Any]:
    return {
        "color": look.colour,
        "linewidth": look.width,
        "marker": look.marker or None,
        "markersize": 8.5 if look.marker == "*" else MARKER,
        "markerfacecolor": look.colour if look.filled else "white",
        "markeredgewidth": 1.3,
    }


def _line(axes: Axes, mark: Line) -> None:
    low, high = mark.low, mark.high
    if mark.band is not None:
        low, high = mark.y - mark.band, mark.y + mark.band
    if low is not None and high is not None:
        axes.fill_between(mark.x, low, high, color=mark.look.colour, alpha=BAND_ALPHA, linewidth=0, zorder=2)
    if mark.bars is not None:
        axes.errorbar(mark.x, mark.y, yerr=mark.bars, zorder=2.5, **_whiskers(mark.look))
    axes.plot(mark.x, mark.y, linestyle=DASHES[mark.look.dash], zorder=3, **_stroke(mark.look))


def _whiskers(look: Look) -> dict[str, Any]:
    return {"fmt": "none", "ecolor": look.colour, "elinewidth": 1.1, "capsize": 2.0, "alpha": 0.75}


def _dots(axes: Axes, mark: Dots, scale: Limits | None) -> ScalarMappable | None:
    if mark.x_bars is not None or mark.y_bars is not None:
        axes.errorbar(mark.x, mark.y, xerr=mark.x_bars, yerr=mark.y_bars, zorder=2.5, **_whiskers(mark.look))
    face = mark.look.colour if mark.look.filled else "white"
    look: dict[str, Any] = {"s": mark.size**2, "marker": mark.look.marker or "o", "linewidths": 1.2, "zorder": 3}
    drawn = None
    if mark.by is None:
        axes.scatter(mark.x, mark.y, facecolor=face, edgecolor=mark.look.colour, **look)
    else:
        low, high = scale or (0.0, 1.0)
        drawn = axes.scatter(mark.x, mark.y, c=mark.by, cmap=SEQUENTIAL[0], vmin=low, vmax=high, **{**look, "linewidths": 0.0})
    if mark.written:
        for x, y, text in zip(mark.x, mark.y, mark.text, strict=True):
            axes.annotate(text, (x, y), (4, 4), textcoords="offset points", fontsize=8, color="#222222")
    return drawn


def _spread(axes: Axes, mark: Spread) -> None:
    samples = mark.samples[np.isfinite(mark.samples)]
    if not len(samples):
        return
    colour = mark.look.colour
    if mark.kind == "violin" and np.ptp(samples) > 0:
        drawn: dict[str, Any] = axes.violinplot([samples], [mark.at], widths=mark.width, showextrema=False, showmedians=True)
        drawn["cmedians"].set(color=colour, linewidth=2.0)
        for body in drawn["bodies"]:
            body.set(facecolor=colour, edgecolor=colour, alpha=0.35)
    else:
        lines = {"color": colour, "linewidth": 1.2}
        look: dict[str, Any] = {"boxprops": {"facecolor": "white", **lines, "edgecolor": colour}, "whiskerprops": lines, "capprops": lines}
        look["boxprops"].pop("color")
        axes.boxplot(
            [samples],
            positions=[mark.at],
            widths=mark.width,
            patch_artist=True,
            manage_ticks=False,
            showfliers=not mark.jitter,
            medianprops={"color": colour, "linewidth": 2.0},
            flierprops={"markersize": 2.5, "markeredgecolor": colour},
            **look,
        )
    if mark.jitter:
        axes.scatter(spread_jitter(mark)[np.isfinite(mark.samples)], samples, s=4, color=colour, alpha=0.35, linewidths=0, zorder=3)


def _bars(axes: Axes, mark: Bars) -> None:
    axes.bar(
        mark.x + mark.offset,
        mark.height,
        mark.width,
        color=mark.look.colour,
        alpha=0.85,
        hatch=HATCHES[mark.look.dash],
        edgecolor="white",
        linewidth=0.6,
        zorder=2,
    )
    if mark.errors is not None:
        axes.errorbar(mark.x + mark.offset, mark.height, yerr=mark.errors, zorder=3, **{**_whiskers(Look("#222222")), "alpha": 1.0})


def _heat(axes: Axes, mark: Heat) -> ScalarMappable:
    import matplotlib

    low, high = heat_limits(mark)
    colours = matplotlib.colormaps[(DIVERGING if mark.diverging else SEQUENTIAL)[0]].with_extremes(bad="white")
    origin: Any = "upper" if mark.downwards else "lower"
    drawn = axes.imshow(mark.cells, cmap=colours, vmin=low, vmax=high, origin=origin, aspect="auto", interpolation="nearest")
    if mark.written:
        for (row, column), cell in np.ndenumerate(mark.cells):
            if np.isfinite(cell):
                red, green, blue, _ = drawn.to_rgba(np.array(cell))
                ink = "white" if 0.299 * red + 0.587 * green + 0.114 * blue < 0.5 else "#111111"
                axes.text(column, row, f"{cell:.3g}", ha="center", va="center", fontsize=7.5, color=ink)
    return drawn


def _reference(axes: Axes, mark: Reference) -> None:
    look: dict[str, Any] = {"color": mark.look.colour, "linewidth": mark.look.width, "linestyle": DASHES[mark.look.dash], "zorder": 1}
    small: dict[str, Any] = {"ha": "right", "va": "bottom", "fontsize": 8.5, "color": mark.look.colour, "textcoords": "offset points"}
    if mark.chord is not None:
        (x, y), (to_x, to_y) = mark.chord
        axes.plot([x, to_x], [y, to_y], **look)
        axes.annotate(mark.label, ((x + to_x) / 2, (y + to_y) / 2), (0, 3), **{**small, "ha": "center"})
    if mark.y is not None:
        axes.axhline(mark.y, **look)
        axes.annotate(mark.label, (1, mark.y), (-2, 3), xycoords=("axes fraction", "data"), **small)
    if mark.x is not None:
        axes.axvline(mark.x, **look)
        axes.annotate(mark.label, (mark.x, 1), (-2, -2), xycoords=("data", "axes fraction"), **{**small, "va": "top", "rotation": 90})
