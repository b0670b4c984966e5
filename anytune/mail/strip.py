"""What the author of a mail wrote, without what they quoted, forwarded or sign every mail with."""

from __future__ import annotations

import re
from collections.abc import Sequence

# "On …, X wrote:" as mail programs write it, in one line or two; a date or an address tells it from the author's words.
_WROTE = re.compile(
    r"(?:On|Am|Le|El|Il|Op|Em|Den|W dniu|Dnia)\b(?=.*[\d@]).{4,200}?"
    r"(?:wrote|schrieb|a écrit|escribió|ha scritto|schreef|escreveu|skrev|pisze|napisał\(?a?\)?).{0,80}:\s*",
    re.IGNORECASE,
)
# Without them it needs a quotation that follows.
_SOMEBODY_WROTE = re.compile(r".{2,120} (?:wrote|writes|schrieb|a écrit)\s*:\s*", re.IGNORECASE)
# Lines after which nothing is the author's.
_CUT = re.compile(
    r"\s*-{2,}\s*(?:Original Message|Original-Nachricht|Ursprüngliche Nachricht|Message d'origine|Mensaje original|"
    r"Messaggio originale|Oorspronkelijk bericht|Forwarded message|Weitergeleitete Nachricht|Message transféré|"
    r"Mensaje reenviado)\b.*|\s*Begin forwarded message:\s*|\s*-{3,}\s*Forwarded by .*",
    re.IGNORECASE,
)
_HEADER = re.compile(r"\*?(?:From|Von|De|Da|Van|Från|Od)\s*:\*?\s*\S.*", re.IGNORECASE)
_HEADERS = re.compile(
    r"\*?(?:Sent|Date|To|Subject|Cc|Gesendet|Datum|An|Betreff|Envoyé|À|Objet|Enviado|Para|Asunto|"
    r"Inviato|A|Oggetto|Verzonden|Aan|Onderwerp)\s*:\*?\s*.*",
    re.IGNORECASE,
)
_DEVICE = re.compile(
    r"(?:Sent|Gesendet|Envoyé|Enviado|Inviato|Verzonden) (?:from|von|depuis|desde|da|vanaf|via) "
    r".{1,60}|Get Outlook for .{1,30}",
    re.IGNORECASE,
)


def own_text(text: str, signatures: Sequence[str] = ()) -> str:
    """The author's words. signatures: texts that end messages and are cut off with all behind them."""
    kept: list[str] = []
    lines = _lines(text)
    i = 0
    while i < len(lines):
        line = lines[i]
        if line.rstrip() == "--" or _CUT.fullmatch(line) or _is_header_block(lines, i):
            break
        if line.lstrip().startswith(">"):
            i += 1
            continue
        span = _wrote(lines, i)
        if span:
            if not _quoted_follows(lines, i + span):
                break  # a quotation without marks, as Outlook makes them
            i += span
            continue
        kept.append(line.rstrip())
        i += 1
    own = "\n".join(kept)
    for signature in signatures:
        at = own.rfind(signature.strip()) if signature.strip() else -1
        own = own[:at] if at >= 0 else own
    parts = own.rstrip().split("\n")
    while parts and (_DEVICE.fullmatch(parts[-1].strip()) or not parts[-1].strip(" _")):
        parts.pop()
    return re.sub(r"\n{3,}", "\n\n", "\n".join(parts)).strip()


def quoted_text(text: str) -> str:
    """What the mail answers, as far as it quotes it with ">": the first level alone, "" if there is none."""
    lines = [re.sub(r"^\s*> ?", "", line).rstrip() for line in _lines(text) if line.lstrip().startswith(">")]
    return own_text("\n".join(lines))


def is_forward(text: str, subject: str) -> bool:
    """Whether the mail passes on another one: then its few words belong to that, not to a conversation."""
    return bool(
        re.match(r"(?:fwd?|wg|tr|rv|i|enc)\s*:", subject, re.IGNORECASE)
        and any("forward" in line.lower() or _CUT.fullmatch(line) for line in _lines(text))
    )


def _lines(text: str) -> list[str]:
    """Lines as a mail has them: U+2028 and the like are its author's."""
    return re.split(r"\r\n|\r|\n", text)


def _wrote(lines: Sequence[str], i: int) -> int:
    """How many lines an "On … wrote:" that begins here takes, 0 if none does."""
    first = lines[i].strip()
    if not first:
        return 0
    if len(first) < 400 and (
        _WROTE.fullmatch(first) or (_SOMEBODY_WROTE.fullmatch(first) and _quoted_follows(lines, i + 1))
    ):
        return 1
    if i + 1 < len(lines) and not first.endswith((".", "!", "?")):
        both = f"{first} {lines[i + 1].strip()}"
        if len(both) < 400 and lines[i + 1].rstrip().endswith(":") and _WROTE.fullmatch(both):
            return 2
    return 0


def _quoted_follows(lines: Sequence[str], i: int) -> bool:
    rest = next((line for line in lines[i:] if line.strip()), "")
    return rest.lstrip().startswith(">")


def _is_header_block(lines: Sequence[str], i: int) -> bool:
    """From: with two more headers below it."""
    return bool(
        _HEADER.fullmatch(lines[i].strip())
        and sum(bool(_HEADERS.fullmatch(line.strip())) for line in lines[i + 1 : i + 6]) >= 2
    )
