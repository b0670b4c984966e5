"""Chats from a mailbox: what somebody wrote, and what the person answered; split by conversation.

Two passes over the mail: the first finds the person's messages and which mails they answer, the second reads those.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from anytune.errors import UserError
from anytune.files import atomic_write, cannot_write, check_files
from anytune.mail import boxes
from anytune.mail.parse import Mail, parse
from anytune.mail.redact import redact as redacted
from anytune.mail.strip import is_forward, own_text, quoted_text

SPLITS = ("train", "validation", "test")
RECIPE = "recipe.json"


@dataclass(frozen=True)
class Pair:
    """thread: any id that all mails of one conversation share."""

    thread: str
    prompt: str
    reply: str


class _Threads:
    """Which messages belong to one conversation: a forest over their ids."""

    def __init__(self) -> None:
        self.above: dict[str, str] = {}

    def root(self, name: str) -> str:
        above = self.above
        while (up := above.setdefault(name, name)) != name:
            above[name] = above[up]  # the way is shorter next time
            name = above[name]
        return name

    def join(self, names: Sequence[str]) -> None:
        for name in names[1:]:
            self.above[self.root(name)] = self.root(names[0])


def build(
    paths: Sequence[str | os.PathLike],
    senders: Sequence[str],
    folder: str | os.PathLike,
    *,
    system: str | None = None,
    include_new: bool = False,
    subject: bool = False,
    redact: bool = False,
    signatures: Sequence[str] = (),
    min_words: int = 3,
    max_words: int = 1000,
    validation: float = 0.05,
    test: float = 0.1,
    seed: int = 42,
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Write train.jsonl, validation.jsonl, test.jsonl (rows of messages) and recipe.json; returns the latter's facts.

    paths: mbox files, Maildir folders, .eml files or folders of them. senders: the person's addresses. system: a system
    message for every row, {name} in it is the person's name. include_new: also mails that answer none, asked for by
    receiver and subject. subject: the subject above each prompt. signatures: texts that end mails and are cut off.
    min_words: of a reply; max_words: of prompt and reply; others are left out. validation, test: parts of the pairs,
    whole conversations each. force: replace files that exist. progress: (bytes read, of how many). Same mail and
    arguments, same bytes. Raises UserError for addresses, folders and mail of which nothing can be made.
    """
    known = {sender.strip().lower() for sender in senders}
    bad = next((sender for sender in known if "@" not in sender), None)
    if not known or bad is not None:
        raise UserError(f"--from takes the sender's address of your e-mails, such as me@example.org, not {bad!r}.")
    if validation < 0 or test < 0 or validation + test >= 1:
        raise UserError("The fractions for validation and test must be 0 or more, and leave something to train on.")
    folder = _folder(folder, validation, test)
    files = boxes.find(paths)
    written = (RECIPE, *(f"{split}.jsonl" for split in SPLITS))
    check_files(folder, written, force, [("a mailbox", file) for file in files])
    counts: Counter[str] = Counter()
    own, threads = _own(files, known, counts, progress)
    originals = _originals(files, {mail.parents[-1] for mail in own if mail.parents}, counts["messages"], progress)
    names = Counter(mail.name for mail in own if mail.name).most_common(1)
    name = names[0][0] if names else min(known).split("@")[0]
    pairs: list[Pair] = []
    seen: set[tuple[str, str]] = set()
    for number, mail in enumerate(own):
        reply = own_text(mail.text, signatures)
        prompt, why = _prompt(mail, reply, originals, known, include_new, subject)
        why = why or _length(prompt, reply, min_words, max_words)
        if redact and not why:
            (prompt, a), (reply, b) = redacted(prompt), redacted(reply)
            counts["redacted"] += a + b
        key = (" ".join(prompt.casefold().split()), " ".join(reply.casefold().split()))
        if not why and key in seen:
            why = "duplicates"
        if why:
            counts[why] += 1
            continue
        seen.add(key)
        pairs.append(Pair(threads.root(mail.id) if mail.id else f"#{number}", prompt, reply))
    if not pairs:
        raise UserError(
            f"No pair of an e-mail and its answer is left: {_told(counts)}. See --include-new and --min-words, or "
            "also give the mailbox with the original e-mails."
        )
    chosen = _split(pairs, validation, test, seed)
    facts = {
        "recipe": "email",
        "seed": seed,
        "validation_split": validation,
        "test_split": test,
        "system": system,
        "include_new": include_new,
        "subject": subject,
        "redact": redact,
        "min_words": min_words,
        "max_words": max_words,
        "counts": dict(sorted(counts.items())),
        "threads": len({pair.thread for pair in pairs}),
        "rows": {split: len(rows) for split, rows in chosen.items()},
    }
    _write(folder, chosen, system.replace("{name}", name) if system else None, facts)
    return facts


def _folder(folder: str | os.PathLike, validation: float, test: float) -> Path:
    folder = Path(folder).expanduser()
    for split, part in (("validation", validation), ("test", test)):
        if not part and (folder / f"{split}.jsonl").exists():
            raise UserError(
                f"{folder} has a {split}.jsonl of an earlier run, which this run would not replace: choose another "
                "folder."
            )
    return folder


def _own(
    files: list[Path], known: set[str], counts: Counter[str], progress: Callable[[int, int], None] | None
) -> tuple[list[Mail], _Threads]:
    """The person's mails with their texts, and the conversations of all mails."""
    own: list[Mail] = []
    threads, senders, ids = _Threads(), Counter(), set()
    halves = None if progress is None else lambda done, total: progress(done, 2 * total)
    for raw in boxes.messages(files, halves):
        counts["messages"] += 1
        mail = parse(raw, with_text=False)
        if mail is None:
            counts["unreadable"] += 1
            continue
        threads.join([name for name in (mail.id, *mail.parents, mail.thread and f"thread {mail.thread}") if name])
        senders[mail.sender] += 1
        if mail.sender not in known:
            continue
        if mail.id and mail.id in ids:
            counts["duplicates"] += 1
            continue
        ids.add(mail.id)
        full = parse(raw)
        counts["own"] += 1
        if full is None or mail.automatic:
            counts["automatic"] += 1
        else:
            own.append(full)
    if not senders:
        raise UserError(
            f"{', '.join(map(str, files[:3]))}: there is no e-mail with a sender; give mbox files, a Maildir or .eml "
            "files."
        )
    if not counts["own"]:
        often = ", ".join(f"{sender} ({n})" for sender, n in senders.most_common(3))
        raise UserError(
            f"None of the {counts['messages']} messages was sent from {' or '.join(sorted(known))}; the "
            f"most frequent senders are {often}."
        )
    return own, threads


def _originals(
    files: list[Path], wanted: set[str], count: int, progress: Callable[[int, int], None] | None
) -> dict[str, Mail]:
    """id -> mail, its text without quotes, for the wanted ids."""
    found: dict[str, Mail] = {}
    second = None if progress is None else lambda done, total: progress(total + done, 2 * total)
    for raw in boxes.messages(files, second) if wanted else ():
        head = parse(raw, with_text=False)
        if head is not None and head.id in wanted and head.id not in found:
            mail = parse(raw)
            if mail is not None:
                found[head.id] = mail
    return found


def _prompt(
    mail: Mail, reply: str, originals: dict[str, Mail], known: set[str], include_new: bool, subject: bool
) -> tuple[str, str]:
    """(what the mail answers, "") or ("", why there is nothing)."""
    if is_forward(mail.text, mail.subject):
        return "", "forwards"
    if not reply:
        return "", "without_own_words"
    original = originals.get(mail.parents[-1]) if mail.parents else None
    text = own_text(original.text) if original is not None and original.sender not in known else ""
    text = text or quoted_text(mail.text)
    if text:
        return (f"Subject: {mail.subject}\n\n{text}" if subject and mail.subject else text), ""
    if mail.parents:
        return "", "follow_ups" if original is not None and original.sender in known else "original_missing"
    if not include_new or not mail.subject:
        return "", "new"
    return f"Write an e-mail{' to ' + mail.to if mail.to else ''}. Subject: {mail.subject}", ""


def _length(prompt: str, reply: str, least: int, most: int) -> str:
    sizes = [len(text.split()) for text in (prompt, reply)]
    return "too_long" if max(sizes) > most else "too_short" if sizes[1] < least else ""


def _split(pairs: list[Pair], validation: float, test: float, seed: int) -> dict[str, list[Pair]]:
    """Whole conversations, in an order drawn from the seed, go into test and validation until these are full."""
    groups: dict[str, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(pair.thread, []).append(pair)
    room = {"test": round(test * len(pairs)), "validation": round(validation * len(pairs))}
    home = {}
    keys = sorted(groups)
    for k in np.random.default_rng(seed).permutation(len(keys)):
        size = len(groups[keys[k]])
        home[keys[k]] = next((split for split, left in room.items() if size <= left), "train")
        if home[keys[k]] in room:
            room[home[keys[k]]] -= size
    return {split: [pair for pair in pairs if home[pair.thread] == split] for split in SPLITS}


def _write(folder: Path, chosen: dict[str, list[Pair]], system: str | None, facts: dict[str, Any]) -> None:
    first = [{"role": "system", "content": system}] if system else []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for split, pairs in chosen.items():
            if split != "train" and not facts[f"{split}_split"]:
                continue
            with atomic_write(folder / f"{split}.jsonl") as file:
                for pair in pairs:
                    row = {
                        "messages": [
                            *first,
                            {"role": "user", "content": pair.prompt},
                            {"role": "assistant", "content": pair.reply},
                        ]
                    }
                    file.write((json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8", "replace"))
        with atomic_write(folder / RECIPE, "w") as file:
            json.dump(facts, file, indent=1, ensure_ascii=False)
    except OSError as error:
        raise cannot_write(folder, error) from None


def _told(counts: Counter[str]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in sorted(counts.items()))
