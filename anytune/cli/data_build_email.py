"""anytune data build email: a mailbox as training data in its owner's style."""

from __future__ import annotations

from typing import Any

import click

from anytune.cli.command import Command
from anytune.cli.options import force_option, forced, json_option
from anytune.cli.say import note, print_json

_LEFT_OUT = {
    "duplicates": "said before, to the same mail",
    "automatic": "sent by a program",
    "forwards": "forwarded",
    "without_own_words": "without words of their own",
    "too_short": "too short",
    "too_long": "too long",
    "follow_ups": "to one's own mail",
    "original_missing": "answering a mail that is neither here nor quoted",
    "new": "answering no mail (see --include-new)",
}


@click.command(
    cls=Command,
    short_help="A mailbox: what you were written, and what you answered.",
    example="""
    anytune data build email Mail.mbox --from me@example.org -o mails
    anytune data build email ~/Maildir --from me@example.org --from me@work.example --redact -o mails
    anytune train -m model.gguf -f mails/train.jsonl --val-file mails/validation.jsonl
""",
)
@click.argument("mailboxes", nargs=-1, required=True, metavar="MAILBOX...")
@click.option(
    "--from",
    "senders",
    multiple=True,
    required=True,
    metavar="ADDRESS",
    help="Your address; may be given several times.",
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
@click.option("--subject", is_flag=True, help="Put the subject above each mail that is answered.")
@click.option(
    "--include-new",
    is_flag=True,
    help='Also mails that answer none: the prompt is "Write an e-mail to NAME. Subject: …".',
)
@click.option(
    "--redact", is_flag=True, help="Put [address], [link] and [number] for addresses, links and long numbers."
)
@click.option(
    "--signature",
    "signatures",
    multiple=True,
    metavar="TEXT",
    help="A text that ends your mails: cut it off, with all below it. May be given several times.",
)
@click.option("--min-words", type=click.IntRange(1), default=3, show_default=True, help="Leave out shorter answers.")
@click.option(
    "--max-words", type=click.IntRange(1), default=1000, show_default=True, help="Leave out pairs with a longer side."
)
@click.option(
    "--val-split",
    "validation",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.05,
    show_default=True,
    help="Part of the pairs for validation, in whole conversations.",
)
@click.option(
    "--test-split",
    "test",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.1,
    show_default=True,
    help="The same for the test that `anytune evaluate style` takes.",
)
@click.option("-s", "--seed", type=click.IntRange(0), default=42, show_default=True, help="Seed of the split.")
@force_option
@json_option
def email(mailboxes: tuple[str, ...], senders: tuple[str, ...], folder: str, as_json: bool, **options: Any) -> None:
    """Pair each mail that you sent with the one that it answers: chats for `anytune train`.

    MAILBOX is an mbox file (Gmail Takeout's too), a Maildir, an .eml file, or a folder of these; give the folder of
    what you received as well as that of what you sent. Quotes, signatures, forwarded parts and attachments are taken
    away, HTML becomes text. Everything stays on this machine.
    """
    from anytune.cli.progress import Progress
    from anytune.mail.build import build

    with Progress("mail", "bytes", quiet=as_json) as progress:
        facts = build(mailboxes, senders, folder, force=forced(), progress=progress.to, **options)
    for split, part in (("validation", options["validation"]), ("test", options["test"])):
        if part and not facts["rows"][split]:
            note(f"no conversation was small enough for {split}.jsonl: it is empty; raise its part")
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
            click.echo(f"  left out: {counts[name]:,} {text}")
    if facts["redact"]:
        click.echo(f"  redacted: {counts.get('redacted', 0):,} addresses, links and numbers")
    click.echo(", ".join(f"{split} {count:,}" for split, count in rows.items()) + f": {folder}")
