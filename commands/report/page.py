"""Makes the HTML page of what view.py found: one file that loads nothing.

assets/page.html is the template. Jinja escapes every value that it inserts; the curves are JSON in which no
`<` is left, so that no text can close the script element. A Content-Security-Policy names the digests of the
page's own script and style: no other script runs, whatever text a stranger wrote, and nothing is loaded.
uPlot (assets/uPlot.*, MIT) draws the curves.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import jinja2
from markupsafe import Markup

from ...core.content_security import inline_source
from ...core.manifest import Json
from ...core.terminal import escape

# HTML forbids them, and whoever prints the file would send them to a terminal; lone surrogates are no UTF-8.
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
ASSETS = Path(__file__).with_name("assets")


def render(title: str, view: Json) -> str:
    """The page. view: see view.py."""
    script, style = (
        _asset("uPlot.LICENSE", "uPlot.min.js", "report.js"),
        _asset("uPlot.min.css", "report.css"),
    )
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ASSETS),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = lambda value: "" if value is None else f"{value:,}"
    page = environment.get_template("page.html").render(
        title=title,
        script=script,
        style=style,
        policy=f"default-src 'none'; script-src {inline_source(script)}; style-src {inline_source(style)}",
        data=_json_for_script({"runs": view["runs"], "charts": [t["charts"] for t in view["trainings"]]}),
        **view,
    )
    return CONTROLS.sub(lambda found: escape(found[0]), page)


def _asset(*names: str) -> Markup:
    """The text of files in assets/, for a script or style element; a licence is a comment."""
    texts = []
    for name in names:
        text = (ASSETS / name).read_text(encoding="utf-8")
        texts.append(f"/*\n{text}*/" if name.endswith(".LICENSE") else text)
    return Markup("\n".join(texts))


def _json_for_script(value: object) -> Markup:
    """JSON for the inside of a script element: whatever text it has cannot close it, nor open a comment."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))
