"""Orders of a model's units: a criterion gives every head, matrix or layer a score, a direction sorts them.

`criteria.py` has a function and a row of CRITERIA per criterion, `rankings.py` makes the spec of an order and builds it. Importing this
package needs neither torch nor numpy.
"""

from __future__ import annotations

from cpt_lab.orderings.criteria import CRITERIA, DELTA_MEASURES, Criterion, Scores, Table, per_head, scale01
from cpt_lab.orderings.rankings import DIRECTIONS, Settings, build_ranking, order, ranking

__all__ = [
    "CRITERIA",
    "DELTA_MEASURES",
    "DIRECTIONS",
    "Criterion",
    "Scores",
    "Settings",
    "Table",
    "build_ranking",
    "order",
    "per_head",
    "ranking",
    "scale01",
]
