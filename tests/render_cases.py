"""A drawing with every kind of mark, for the renderers."""

from __future__ import annotations

import numpy as np

from analysis.drawing import Axis, Bars, Dots, Drawing, Heat, Line, Look, Panel, Reference, Spread, values

SAMPLES = np.random.default_rng(0).normal(size=50)
CELLS = np.array([[1.0, -2.0, np.nan], [0.0, 0.5, 1.5]])

LINES = Panel(
    (
        Line("banded", values([0, 1, 2]), values([1, None, 3]), Look("#0072B2", marker="o"), band=values([0.1, 0.1, 0.2])),
        Line("barred", values([0, 1, 2]), values([2, 3, 4]), Look("#D55E00", "dashed", "s", filled=False), bars=values([0.3, 0.2, 0.1])),
        Reference("level", y=2.5),
        Reference("edge", x=1.5),
        Reference("chord", chord=((0.0, 1.0), (2.0, 4.0))),
    ),
    title="lines & bands",
    x=Axis("Share", "%"),
    y=Axis("Accuracy <b>", "%", limits=(0, None)),
)
DOTS = Panel(
    (
        Dots("plain", values([1, 10]), values([1, 2]), y_bars=values([0.1, 0.1]), text=("one", "two"), written=True),
        Dots("coloured", values([2, 20, 200]), values([1, 2, 3]), by=values([0.1, 0.5, 0.9])),
    ),
    x=Axis("Tokens", "B tokens", scale="log", ticks=((1, "1"), (100, "100"))),
    colours="agreement",
)
SPREADS = Panel(
    (
        Spread("box", 0.0, SAMPLES, Look("#009E73"), jitter=True),
        Spread("violin", 1.0, SAMPLES, Look("#A0468C"), kind="violin"),
        Spread("constant", 2.0, np.ones(5), kind="violin"),
        Spread("empty", 3.0, np.array([np.nan])),
        Bars("bars", values([4, 5]), values([1, 2]), Look("#B8860B", "dashed"), errors=values([0.2, 0.3])),
    )
)
HEAT = Panel((Heat(CELLS, rows=("low", "high"), columns=("q", "k", "v"), label="change [points]", diverging=True, written=True),))
EVERYTHING = Drawing("everything", "Every mark <once>", "Seen & drawn, with n = 3.", ((LINES, DOTS), (SPREADS, HEAT)))
