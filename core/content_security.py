"""Sources of a Content-Security-Policy, the browser's list of what a page may run and load."""

from __future__ import annotations

import base64
import hashlib


def inline_source(text: str) -> str:
    """The source that allows one inline script or style element, by the SHA-256 of its text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
