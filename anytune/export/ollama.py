"""Ollama's Modelfile: the weights, the chat template in Go's template language, where an answer stops.

The template runs over .Messages, as Ollama's own do; .System is what all system messages say. Ollama puts BOS in front
by itself.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from anytune.errors import UserError
from anytune.export.chat import Format


def go_template(made: Format) -> str:
    """The format as a Go template. Literal text is as it is; nothing is trimmed."""
    user, asked = "{{ $m.Content }}", '{{ if and $last (ne $m.Role "assistant") }}'
    system = ""
    if made.system is not None:
        before, after = map(_literal, made.system)
        if made.place == "turn":
            system = f'{{{{ if eq $m.Role "system" }}}}{before}{{{{ $m.Content }}}}{after}{{{{ else if'
        else:
            now = "$system" if made.place == "first" else "and $system $last"
            user = f'{{{{ if {now} }}}}{before}{{{{ $system }}}}{after}{{{{ $system = "" }}}}{{{{ end }}}}' + user
    bos = f"{{{{ $bos }}}}{{{{ $bos = {json.dumps(made.bos, ensure_ascii=False)} }}}}" if made.turn_bos else ""
    head = "{{ $system := .System }}" if made.system is not None and made.place != "turn" else ""
    if made.turn_bos:
        head += '{{ $bos := "" }}'  # the program's own is before the first turn
    if made.start:
        head += f"{{{{ if not .System }}}}{_literal(made.start)}{{{{ end }}}}" if made.system else _literal(made.start)
    return (
        head
        + "{{ range $i, $m := .Messages }}{{ $last := eq (len (slice $.Messages $i)) 1 }}"
        + (system or "{{ if")
        + f' eq $m.Role "user" '
        f"}}}}{bos}{_literal(made.user[0])}{user}{_literal(made.user[1])}"
        + f'{{{{ else if eq $m.Role "assistant" }}}}{_literal(made.assistant[0])}{{{{ $m.Content }}}}'
        + (f"{{{{ if not $last }}}}{_literal(made.assistant[1])}{{{{ end }}}}" if made.assistant[1] else "")
        + "{{ end }}"
        + (asked + _literal(made.prompt) + "{{ end }}" if made.prompt else "")
        + "{{ end }}"
    )


def _literal(text: str) -> str:
    """Text as a Go template writes it: braces that would open an action become one that prints them."""
    return re.sub(r"\{(?=\{)|\{$", '{{ "{" }}', text)


def modelfile(
    weights: str,
    *,
    template: str | None = None,
    adapter: str | None = None,
    stops: Sequence[str] = (),
    system: str | None = None,
    parameters: Sequence[tuple[str, str]] = (),
) -> str:
    """The text of a Modelfile. weights, adapter: paths relative to it. UserError for text that it cannot hold."""
    lines = [f"FROM {_path(weights)}"]
    if adapter is not None:
        lines.append(f"ADAPTER {_path(adapter)}")
    if template is not None:
        lines.append(f"TEMPLATE {_quoted(template)}")
    if system is not None:
        lines.append(f"SYSTEM {_quoted(system)}")
    lines += [f"PARAMETER stop {_quoted(text)}" for text in stops]
    lines += [f"PARAMETER {name} {value}" for name, value in parameters]
    return "\n".join(lines) + "\n"


def _path(path: str) -> str:
    if "\n" in path or '"' in path:
        raise UserError(f"A Modelfile cannot name the path {path!r}: choose one without quotes and line ends.")
    return f'"{path}"' if " " in path else path


def _quoted(text: str) -> str:
    """Text as a Modelfile holds it: in triple quotes, or bare where quotes of its own would end those.

    Ollama reads a value up to the first line end behind which it is whole: bare text up to the first one, quoted text
    up
    to the first line that ends in triple quotes.
    """
    if '"""' not in text and not text.endswith('"'):
        return f'"""{text}"""'
    lines = text.splitlines() or [""]
    if len(lines) == 1 and text == text.strip() and not text.startswith('"'):
        return text
    if any(line.rstrip().endswith('"""') for line in lines[:-1]):
        raise UserError(
            "A Modelfile cannot contain multi-line text with triple quotes: change the chat template or the system "
            "message."
        )
    return f'"""{text}"""'
