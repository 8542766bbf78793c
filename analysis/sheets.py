"""A table of cells as CSV (every number in full), Markdown, LaTeX (booktabs) and HTML."""

from __future__ import annotations

import csv as comma_separated
import html as markup
import io
import math
from collections.abc import Iterator

from analysis import pages
from analysis.drawing import Cell, Sheet

MISSING = "-"
ERROR = "error of "  # heads the column of a column's errors
TEX = {
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
}
STYLE = """\
main { overflow-x: auto }
table { border-collapse: collapse }
caption { text-align: left; font-weight: bold; padding-bottom: .5rem }
th, td { padding: .2rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #e6e6e6 }
th:first-child { text-align: left }
thead th { border-bottom: 2px solid #444 }
p { color: #555 }"""


def shown(cell: Cell) -> str:
    """`12.3 ± 0.4`, words as they are, `-` for nothing."""
    number = _number(cell)
    if number is None:
        return str(cell.value) if isinstance(cell.value, str) and cell.value else MISSING
    error = "" if cell.error is None or math.isnan(cell.error) else f" ± {cell.error:.{cell.digits}f}"
    return f"{number:.{cell.digits}f}{error}"


def csv(sheet: Sheet) -> str:
    """A row per row; a column's errors, where it has any, in a column of their own."""
    with_errors = {place for _, cells in sheet.rows for place, cell in enumerate(cells) if cell.error is not None}
    heads = [sheet.columns[0]]
    for place, column in enumerate(sheet.columns[1:]):
        heads += [column, *([f"{ERROR}{column}"] if place in with_errors else [])]
    out = io.StringIO()
    writer = comma_separated.writer(out, lineterminator="\n")
    writer.writerow(heads)
    for name, cells in sheet.rows:
        row = [name]
        for place, cell in enumerate(cells):
            row += [_whole(cell.value), *([_whole(cell.error)] if place in with_errors else [])]
        writer.writerow(row)
    return out.getvalue()


def text(sheet: Sheet) -> str:
    """The table for a terminal: columns as wide as their widest cell."""
    lines = [list(sheet.columns), *([name, *map(shown, cells)] for name, cells in sheet.rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = ("  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip() for line in lines)
    return "\n".join([sheet.title, "", *padded, "", sheet.caption]) + "\n"


def markdown(sheet: Sheet) -> str:
    """The table with its title and caption; the best cells in bold."""
    lines = [f"**{sheet.title}**", "", _piped(sheet.columns), _piped(["---", *("---:" for _ in sheet.columns[1:])])]
    for heading, name, cells in _grouped(sheet):
        if heading:
            lines.append(_piped([f"*{_bare(heading)}*", *("" for _ in sheet.columns[1:])]))
        lines.append(_piped([_bare(name), *(f"**{_bare(shown(cell))}**" if cell.best else _bare(shown(cell)) for cell in cells)]))
    return "\n".join([*lines, "", sheet.caption]) + "\n"


def latex(sheet: Sheet) -> str:
    """A table environment with booktabs' rules; needs \\usepackage{booktabs}."""
    width = len(sheet.columns)
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{_tex(sheet.title)}. {_tex(sheet.caption)}}}", rf"\label{{tab:{sheet.name}}}"]
    lines += [rf"\begin{{tabular}}{{l{'r' * (width - 1)}}}", r"\toprule", " & ".join(map(_tex, sheet.columns)) + r" \\", r"\midrule"]
    for heading, name, cells in _grouped(sheet):
        if heading:
            lines.append(rf"\multicolumn{{{width}}}{{l}}{{\emph{{{_tex(heading)}}}}} \\")
        lines.append(
            " & ".join([_tex(name), *(rf"\textbf{{{_tex(shown(cell))}}}" if cell.best else _tex(shown(cell)) for cell in cells)]) + r" \\"
        )
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"]) + "\n"


def html(sheet: Sheet) -> str:
    """A <table> of a page, with its title as the caption and the notes of cells under the pointer."""
    heads = "".join(f'<th scope="col">{markup.escape(column)}</th>' for column in sheet.columns)
    lines = [
        f'<table id="{markup.escape(sheet.name)}">',
        f"<caption>{markup.escape(sheet.title)}</caption>",
        f"<thead><tr>{heads}</tr></thead>",
        "<tbody>",
    ]
    for heading, name, cells in _grouped(sheet):
        if heading:
            lines.append(f'<tr><th scope="rowgroup" colspan="{len(sheet.columns)}">{markup.escape(heading)}</th></tr>')
        lines.append(f'<tr><th scope="row">{markup.escape(name)}</th>{"".join(map(_of_page, cells))}</tr>')
    return "\n".join([*lines, "</tbody>", "</table>", f"<p>{markup.escape(sheet.caption)}</p>"]) + "\n"


def page(sheet: Sheet) -> str:
    """The table as a whole page."""
    return pages.page(sheet.title, html(sheet), style=STYLE, width="75rem")


def _of_page(cell: Cell) -> str:
    text = markup.escape(shown(cell))
    note = f' title="{markup.escape(cell.note, quote=True)}"' if cell.note else ""
    return f"<td{note}>{f'<strong>{text}</strong>' if cell.best else text}</td>"


def _grouped(sheet: Sheet) -> Iterator[tuple[str, str, tuple[Cell, ...]]]:
    """(heading written before the row or nothing, name, cells)."""
    headings = dict(sheet.groups)
    for place, (name, cells) in enumerate(sheet.rows):
        yield headings.get(place, ""), name, cells


def _number(cell: Cell) -> float | None:
    value = cell.value
    return None if value is None or isinstance(value, str) or math.isnan(value) else float(value)


def _whole(value: float | str | None) -> str:
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else str(value)


def _piped(cells: list[str] | tuple[str, ...]) -> str:
    return "| " + " | ".join(cells) + " |"


def _bare(text: str) -> str:
    return text.replace("|", "\\|")


def _tex(text: str) -> str:
    escaped = "".join(TEX.get(letter, letter) for letter in text.replace("\\", "/"))
    return escaped.replace("±", r"$\pm$").replace("Δ", r"$\Delta$")
