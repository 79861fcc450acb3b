"""Plots of a model's versions as inline SVG. Knows points and axes; never reports, HTML pages or the catalog.

matplotlib draws; colours and the typeface are the page's own CSS variables, so that one plot reads well in light and dark.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from maasdam.errors import from_extra

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT, GRID, GOOD, BAD, REFERENCE = "#010101", "#020202", "#030303", "#040404", "#050505", "#060606"
VARIABLES = {INK: "--ink", FAINT: "--faint", GRID: "--line", GOOD: "--good", BAD: "--bad", REFERENCE: "--accent"}
"""Colours that matplotlib is given -> what they become in the page."""
INCHES = (4.6, 3.3)
NEAR = (0.16, 0.08)
"""Points closer than these shares of both axes carry one label together: about a label's own size."""


@dataclass(frozen=True, slots=True)
class Point:
    """One version in one plot. `low` and `high` bound y (an interval); `title` is shown where the pointer rests."""

    label: str
    x: float
    y: float
    low: float | None = None
    high: float | None = None
    is_good: bool = True
    is_reference: bool = False
    title: str = ""


@dataclass(frozen=True, slots=True)
class Spread:
    """Every timed run of one version, in the unit of the axis."""

    label: str
    values: tuple[float, ...]
    is_good: bool = True
    is_reference: bool = False


def scatter(name: str, points: Sequence[Point], x: str, y: str, y_most: float | None = None) -> str:
    """The points with their intervals, axes named `x` and `y`, as `<svg>`. `name` makes ids unique in the page.

    `y_most`: where the vertical axis ends at the latest, a share's 1.

    Raises MissingExtra where matplotlib is not installed.
    """
    figure, axes = _figure()
    for number, point in enumerate(points):
        colour = _colour(point)
        if point.low is not None and point.high is not None:
            axes.plot([point.x, point.x], [point.low, point.high], color=colour, linewidth=1.4, alpha=0.55, zorder=2)
        marker = "D" if point.is_reference else "o" if point.is_good else "X"
        face = "none" if point.is_reference else colour
        (drawn,) = axes.plot([point.x], [point.y], marker, color=colour, markerfacecolor=face, markersize=8, zorder=3)
        drawn.set_gid(f"point-{number}")
    axes.set_xlabel(x, color=FAINT, parse_math=False)
    axes.set_ylabel(y, color=FAINT, parse_math=False)
    axes.margins(0.14, 0.16)
    _widen(axes)
    if y_most is not None and axes.get_ylim()[1] > y_most:
        low = axes.get_ylim()[0]
        axes.set_ylim(low, y_most + 0.04 * (y_most - low))  # a mark at the end is drawn whole
        axes.set_yticks([tick for tick in axes.get_yticks() if low <= tick <= y_most])
    _label(axes, points)
    return _svg(figure, name, {f"point-{i}": p.title for i, p in enumerate(points) if p.title})


def spreads(name: str, rows: Sequence[Spread], x: str) -> str:
    """One box a row: the middle half of the runs, the median, whiskers from 1 % to 99 %; as `<svg>`."""
    figure, axes = _figure(height=0.9 + 0.36 * len(rows))
    drawn = axes.boxplot(
        [row.values for row in rows], orientation="horizontal", whis=(1, 99), showfliers=False, widths=0.55, patch_artist=True
    )
    for number, row in enumerate(rows):
        colour = _colour(row)
        for part in (drawn["boxes"][number], *drawn["whiskers"][2 * number : 2 * number + 2]):
            part.set_color(colour)
        for part in drawn["caps"][2 * number : 2 * number + 2]:
            part.set_color(colour)
        drawn["boxes"][number].set(facecolor=colour, alpha=0.45)
        drawn["medians"][number].set(color=INK, linewidth=1.6)
    axes.set_yticks(range(1, len(rows) + 1), [row.label for row in rows], color=INK, parse_math=False)
    axes.invert_yaxis()
    axes.set_xlabel(x, color=FAINT, parse_math=False)
    axes.set_xlim(left=0)
    return _svg(figure, name, {})


def _figure(height: float = INCHES[1]) -> tuple[Figure, Axes]:
    with from_extra("report", "matplotlib"):
        from matplotlib.figure import Figure
    figure = Figure(figsize=(INCHES[0], height), layout="constrained")
    axes = figure.subplots()
    axes.patch.set_visible(False)
    figure.patch.set_visible(False)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(GRID)
    axes.tick_params(colors=FAINT, length=0, labelsize=9)
    return figure, axes


def _colour(what: Point | Spread) -> str:
    return REFERENCE if what.is_reference else GOOD if what.is_good else BAD


def _widen(axes: Axes) -> None:
    """Not less than 2 % of the value from end to end, so that noise does not look like a difference; never below zero."""
    for get, put in ((axes.get_xlim, axes.set_xlim), (axes.get_ylim, axes.set_ylim)):
        low, high = get()
        middle, least = (low + high) / 2, 0.02 * max(abs(low), abs(high)) or 1.0
        if high - low < least:
            low, high = middle - least / 2, middle + least / 2
        put(max(low, 0.0) if middle > 0 else low, high)


def _label(axes: Axes, points: Sequence[Point]) -> None:
    """A label beside each point, and one for all whose labels would cover each other."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    width, height = abs(right - left) or 1.0, abs(top - bottom) or 1.0
    groups: list[list[Point]] = []
    for point in sorted(points, key=lambda p: p.x):
        near = next(
            (g for g in groups if abs(g[-1].x - point.x) / width < NEAR[0] and abs(g[-1].y - point.y) / height < NEAR[1]), None
        )
        if near is None:
            groups.append([point])
        else:
            near.append(point)
    for group in groups:
        at = group[-1]
        is_right, is_top = at.x > (left + right) / 2, at.y > top - 0.12 * height
        axes.annotate(
            ", ".join(p.label for p in group),
            (at.x, at.y),
            xytext=(-8 if is_right else 8, -14 if is_top else 6),
            textcoords="offset points",
            ha="right" if is_right else "left",
            color=INK,
            fontsize=9,
            parse_math=False,
        )


def _svg(figure: Figure, name: str, titles: Mapping[str, str]) -> str:
    """The figure as an element for a page: no header, ids of its own, colours by variable, the page's typeface."""
    import matplotlib

    out = io.StringIO()
    settings: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": name}
    with matplotlib.rc_context(settings):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = out.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'(?<![\w-])id="', f'id="{name}-', text)
    text = re.sub(r'href="#', f'href="#{name}-', text).replace("url(#", f"url(#{name}-")
    text = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", text)
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    for gid, title in titles.items():
        mark = f'<g id="{name}-{gid}">'
        text = text.replace(mark, f"{mark}<title>{escape(title)}</title>")
    return re.sub(
        r'<svg [^>]*?viewBox="([^"]*)"[^>]*>',
        r'<svg viewBox="\1" role="img" xmlns="http://www.w3.org/2000/svg" '
        r'xmlns:xlink="http://www.w3.org/1999/xlink">',
        text,
        count=1,
    )
