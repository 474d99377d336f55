"""Makes an HTML page of sections: data, style and scripts in one file that loads nothing and asks nobody.

The report and the trend page call it. A browser runs the scripts given here and no other, whatever a text of a study
holds: the page's policy names each by its hash (W3C, Content Security Policy Level 3).
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterable, Sequence
from hashlib import sha256
from html import escape
from importlib.resources import files
from string import Template

from pytest_llem import __version__
from pytest_llem.errors import JsonValue, visible

POLICY = (
    "default-src 'none'; script-src {}; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
)


def document(
    title: str,
    overview: str,
    sections: Iterable[tuple[str, str, str]],
    data: JsonValue,
    scripts: Sequence[str],
    *,
    style: str = "",
    compiles: bool = False,
) -> str:
    """The page as one string. Sections are name, anchor and markup; one without markup is left out.

    `style` is added to the common one. `compiles`: a script makes code of text, as Vega does of expressions.
    """
    present = [entry for entry in sections if entry[2]]
    inline = [script.replace("\r\n", "\n").replace("</script", "<\\/script") for script in scripts]
    hashes = [f"'sha256-{b64encode(sha256(script.encode()).digest()).decode()}'" for script in inline]
    return Template(asset("report.html")).substitute(
        title=escape(visible(title)),
        policy=POLICY.format(" ".join([*hashes, *(["'unsafe-eval'"] if compiles else [])])),
        overview=overview,
        css=asset("report.css") + style,
        links="".join(f'<li><a href="#{anchor}">{name}</a></li>' for name, anchor, _ in present),
        main="".join(
            f'<section id="{a}" aria-labelledby="{a}-h"><h2 id="{a}-h">{n}</h2>{h}</section>' for n, a, h in present
        ),
        version=__version__,
        data=json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
        scripts="\n".join(f"<script>{script}</script>" for script in inline),
    )


def asset(name: str) -> str:
    """A file that the report's pages are made of."""
    return (files("pytest_llem.results.report") / "assets" / name).read_text(encoding="utf-8")
