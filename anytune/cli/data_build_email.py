"""anytune data build email: a mailbox as training data in its owner's style."""

from __future__ import annotations

from typing import Any

import click

from anytune.cli.command import Command
from anytune.cli.options import force_option, forced, json_option
from anytune.cli.say import note, print_json

_LEFT_OUT = {
    "duplicates": "duplicate answers to the same e-mail",
    "automatic": "sent automatically",
    "forwards": "forwarded",
    "without_own_words": "without text of their own",
    "too_short": "too short",
    "too_long": "too long",
    "follow_ups": "to your own e-mail",
    "original_missing": "answering an e-mail that is neither here nor quoted",
    "new": "answering no e-mail (see --include-new)",
}


@click.command(
    cls=Command,
    short_help="From a mailbox: e-mails paired with your answers.",
    example="""
    anytune data build email Mail.mbox --from me@example.org -o mails
    anytune data build email ~/Maildir --from me@example.org --from me@work.example --redact -o mails
    anytune train -m model.gguf -f mails/train.jsonl --val-file mails/validation.jsonl
""",
)
@click.argument("mailboxes", nargs=-1, required=True, metavar="MAILBOX...")
@click.option(
    "--from", "senders", multiple=True, required=True, metavar="ADDRESS", help="Your address. May be repeated."
)
@click.option(
    "-o",
    "--output",
    "folder",
    required=True,
    metavar="FOLDER",
    help="Write train.jsonl, validation.jsonl, test.jsonl and recipe.json into this folder.",
)
@click.option(
    "--system",
    metavar="TEXT",
    help='A system message for every row, such as "Write a reply in {name}\'s style."; {name} is your name.',
)
@click.option("--subject", is_flag=True, help="Put the subject above each answered e-mail.")
@click.option(
    "--include-new",
    is_flag=True,
    help='Also include e-mails that answer none: the prompt is "Write an e-mail to NAME. Subject: …".',
)
@click.option(
    "--redact", is_flag=True, help="Replace addresses, links and long numbers by [address], [link] and [number]."
)
@click.option(
    "--signature",
    "signatures",
    multiple=True,
    metavar="TEXT",
    help="A signature in your e-mails: removed, with everything below it. May be repeated.",
)
@click.option("--min-words", type=click.IntRange(1), default=3, show_default=True, help="Skip shorter answers.")
@click.option(
    "--max-words", type=click.IntRange(1), default=1000, show_default=True, help="Skip pairs with a longer side."
)
@click.option(
    "--val-split",
    "validation",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.05,
    show_default=True,
    help="Fraction of the pairs for validation, in whole conversations.",
)
@click.option(
    "--test-split",
    "test",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.1,
    show_default=True,
    help="The same for the test set, for `anytune evaluate style`.",
)
@click.option("-s", "--seed", type=click.IntRange(0), default=42, show_default=True, help="Seed of the split.")
@force_option
@json_option
def email(mailboxes: tuple[str, ...], senders: tuple[str, ...], folder: str, as_json: bool, **options: Any) -> None:
    """Pair each e-mail that you sent with the one that it answers, as chats for `anytune train`.

    MAILBOX is an mbox file (Gmail Takeout's too), a Maildir, an .eml file, or a folder of these; include what you
    received as well as what you sent. Quotes, signatures, forwarded parts and attachments are removed, HTML becomes
    text. Everything stays on this machine.
    """
    from anytune.cli.progress import Progress
    from anytune.mail.build import build

    with Progress("mail", "bytes", quiet=as_json) as progress:
        facts = build(mailboxes, senders, folder, force=forced(), progress=progress.to, **options)
    for split, part in (("validation", options["validation"]), ("test", options["test"])):
        if part and not facts["rows"][split]:
            note(f"no conversation was small enough for {split}.jsonl: it is empty; raise its fraction")
    if as_json:
        print_json(facts)
        return
    counts, rows = facts["counts"], facts["rows"]
    click.echo(
        f"{counts['messages']:,} messages, {counts['own']:,} of them sent by you; {sum(rows.values()):,} pairs "
        f"from {facts['threads']:,} conversations"
    )
    for name, text in _LEFT_OUT.items():
        if counts.get(name):
            click.echo(f"  skipped: {counts[name]:,} {text}")
    if facts["redact"]:
        click.echo(f"  redacted: {counts.get('redacted', 0):,} addresses, links and numbers")
    click.echo(", ".join(f"{split} {count:,}" for split, count in rows.items()) + f": {folder}")
