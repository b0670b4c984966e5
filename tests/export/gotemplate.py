"""As much of Go's text/template as the exported chat templates use: if, else if, range over .Messages, variables, eq,
ne, and, not. Written from the language's reference; the templates were also run in Go itself (docs/LOG.md)."""

from __future__ import annotations

import re

ACTION = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)


def render(source: str, messages: list[dict[str, str]]) -> str:
    system = "\n\n".join(m["content"] for m in messages if m["role"] == "system")
    parts = ACTION.split(source)  # text, action, text, …
    nodes = [("text", part) if i % 2 == 0 else ("action", part.strip()) for i, part in enumerate(parts)]
    tree, rest = block(nodes, 0)
    assert rest == len(nodes), "an end without a beginning"
    out: list[str] = []
    run(tree, {".System": system, ".Messages": messages}, out)
    return "".join(out)


def block(nodes, at):
    """(tree of nodes up to the matching else or end, where that is)"""
    tree = []
    while at < len(nodes):
        kind, text = nodes[at]
        if kind == "text" or text.split()[0] not in ("if", "range", "else", "end"):
            tree.append((kind, text))
        elif text.split()[0] in ("else", "end"):
            return tree, at
        else:
            branches = []
            head = text
            while True:
                body, at = block(nodes, at + 1)
                branches.append((head, body))
                if nodes[at][1] == "end":
                    break
                head = nodes[at][1].removeprefix("else").strip() or "if true"
            tree.append(("branches", branches))
        at += 1
    return tree, at


def run(tree, names, out) -> None:
    for kind, content in tree:
        if kind == "text":
            out.append(content)
        elif kind == "action":
            if found := re.fullmatch(r"(\$\w+) (:?=) (.*)", content):
                assert found[2] == ":=" or found[1] in names
                names[found[1]] = value(found[3], names)
            else:
                out.append(str(value(content, names)))
        elif content[0][0].startswith("range"):
            assert content[0][0] == "range $i, $m := .Messages"
            for i, message in enumerate(names[".Messages"]):
                names["$i"], names["$m.Role"], names["$m.Content"] = i, message["role"], message["content"]
                run(content[0][1], names, out)
        else:
            for head, body in content:
                if value(head.removeprefix("if").strip(), names):
                    run(body, names, out)
                    break


def value(text: str, names):
    words = [w for w in re.findall(r'\(|\)|"(?:\\.|[^"])*"|[^\s()]+', text)]
    found, rest = call(words, names)
    assert not rest, text
    return found


def call(words, names):
    values = []
    while words and words[0] != ")":
        word = words.pop(0)
        if word == "(":
            inner, words = call(words, names)
            assert words.pop(0) == ")"
            values.append(inner)
        elif word in ("eq", "ne", "and", "not", "len", "slice"):
            values.append(FUNCTIONS[word])
        elif word[0] == '"':
            values.append(word[1:-1].replace('\\"', '"'))
        elif word.isdigit() or word == "true":
            values.append(True if word == "true" else int(word))
        else:
            values.append(names[".Messages" if word == "$.Messages" else word])
    first, *rest = values
    return (first(*rest) if callable(first) else first), words


FUNCTIONS = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "not": lambda a: not a,
    "len": len,
    "and": lambda a, b: b if a else a,
    "slice": lambda a, i: a[i:],
}
