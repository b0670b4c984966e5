"""Addresses, links and numbers out of a text: what a model should not learn by heart from somebody's mail.

Names stay; this hides what has a form, not what has a meaning.
"""

from __future__ import annotations

import re

_LINK = re.compile(r"(?:\b[a-z][a-z0-9+.-]{1,15}://|\bwww\.)[^\s<>\"'\])]+", re.IGNORECASE)
_ADDRESS = re.compile(r"[\w.+%-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){0,5}", re.IGNORECASE)
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,4})?\b")
_NUMBER = re.compile(r"(?<![\w.,])(?:\+|\(\+?)?\d(?:[ \u00a0()./-]{0,2}\d){6,18}(?![\w])")
_DATE = re.compile(r"\d{4}[-./]\d{1,2}[-./]\d{1,2}|\d{1,2}[-./]\d{1,2}[-./]\d{2,4}|(?:19|20)\d\d ?[-/] ?(?:19|20)\d\d")


def redact(text: str) -> tuple[str, int]:
    """(text with [link], [address] and [number], how many were put in). Dates stay."""
    count = 0

    def put(mark: str, keep: re.Pattern | None = None):
        def replacement(match: re.Match) -> str:
            nonlocal count
            if keep is not None and keep.fullmatch(match[0].strip()):
                return match[0]
            count += 1
            return mark

        return replacement

    text = _LINK.sub(put("[link]"), text)
    text = _ADDRESS.sub(put("[address]"), text)
    text = _IBAN.sub(put("[number]"), text)
    return _NUMBER.sub(put("[number]", _DATE), text), count
