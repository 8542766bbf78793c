"""A figure or a table as a whole HTML page."""

from __future__ import annotations

import html

PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ margin: 1.5rem auto; max-width: {width}; padding: 0 1rem; font: 15px/1.5 Helvetica, Arial, sans-serif; color: #222 }}
{style}
</style>
{script}</head>
<body>
<main>
{content}
</main>
</body>
</html>
"""


def page(title: str, content: str, *, style: str, width: str, library: str = "") -> str:
    """The content, HTML already, below a title of plain text; `library` is a script beside the page."""
    script = f'<script src="{library}"></script>\n' if library else ""
    return PAGE.format(title=html.escape(title), content=content.rstrip("\n"), style=style, width=width, script=script)
