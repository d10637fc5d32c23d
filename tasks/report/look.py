"""What all pages share: their style, their one script, and the policy that lets a browser run that script alone."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Look:
    """What `base.html` writes into a page.

    Attributes:
        css: of all elements.
        script: page.js.
        allowed: the source expression of the Content-Security-Policy that names the script by its hash: markup that
            should get through from data is not run.
    """

    css: Markup
    script: Markup
    allowed: Markup


def look(*, more: str = "") -> Look:
    """The look of a page; `more`: CSS of its own."""
    css, script = ((HERE / name).read_text(encoding="utf-8") for name in ("style.css", "page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return Look(Markup(css + more), Markup(script), Markup(f"sha256-{digest}"))
