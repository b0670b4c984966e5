"""Records to a Dataset: tokens, loss masks, and what happens to examples that are too long.

    kind of record  learned                                     rendered
    chat            the assistant's words and their end tokens  by the chat template
    pair            the completion and its end token            by the template if the model has its own, else joined,
                                                                with EOS
    text            everything after the first token            as it is, control tokens read, with EOS
    plain text      everything after the first token            as it is, cut every `context` tokens

With loss "all" everything after the first token is learned, of each; with "assistant" running text is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from anytune.errors import UserError
from anytune.text.columns import LABELS
from anytune.text.dataset import Builder, Dataset, cuts_of
from anytune.text.formats import LOSS, Record, read_records
from anytune.text.given import place, sources
from anytune.text.mask import encode_chat_report
from anytune.text.reading import check_once
from anytune.text.record import question_and_answer
from anytune.text.tally import Tally, no_assistant

OVERFLOW = ("split", "truncate", "drop", "error")


def build_dataset(
    paths,
    tokenizer,
    template,
    *,
    context: int,
    loss: str = "auto",
    assistant_loss_only: bool = False,
    format: str = "auto",
    columns: dict | None = None,
    overflow: str | Mapping[str, str] | None = None,
    see: Callable[[int, Record], None] | None = None,
) -> Dataset:
    """Read and tokenize files (a path or a list of paths), or rows (an iterable of dicts), into examples of at most
    `context` tokens.

    loss: what is learned, see above; assistant_loss_only=True means "assistant".
    overflow: what to do with a longer example. split: into pieces of `context` tokens, each an example of
    its own; truncate: keep the first `context` tokens, or the stretch with the first learned ones if those
    come later; drop: leave it out; error: refuse. None: truncate for chats and pairs, split for text. A table says it
    for each kind of record. see: called with a file's number and each of its records, as they are read.
    The report counts records, chats (those that went through the template), too_long, pieces, cut_tokens and
    dropped, and holds `notes`: sentences for the user.
    Raises UserError naming file and line for what cannot be used, or where nothing is left to learn.
    """
    if not isinstance(overflow, Mapping) and overflow not in (None, *OVERFLOW):
        raise UserError(f"There is no --overflow {overflow}; there are {', '.join(OVERFLOW)}.")
    if loss not in LOSS:
        raise UserError(f"There is no --loss {loss}; there are {', '.join(LOSS)}.")
    if assistant_loss_only and loss == "all":
        raise UserError("--assistant-loss-only and --loss all contradict each other: give one of them.")
    if context < 2:
        raise UserError("The context (-c) must be at least 2 tokens.")
    paths = sources(paths)
    check_once(paths)
    work = _Work(tokenizer, template, context, "assistant" if assistant_loss_only else loss, overflow)
    for number, path in enumerate(paths):
        work.path, work.file = path, number
        for record in read_records(path, format, columns):
            if see is not None:
                see(number, record)
            work.take(record)
        work.end_of_file()
    return work.finish(paths)


class _Work:
    """What is being built, and the counts for the report."""

    def __init__(self, tokenizer, template, context: int, loss: str, overflow) -> None:
        self.tokenizer, self.template, self.context = tokenizer, template, context
        self.loss, self.overflow = loss, overflow
        self.builder, self.path, self.file = Builder(), Path(), 0
        self.tally = Tally(tokenizer)
        self.plain: list[tuple[list[int], list[int]]] = []  # ids and lines of plain text not yet cut

    def take(self, record: Record) -> None:
        self.tally.records += 1
        self.tally.unused.add(record.unused, record.kind, record.suggestion)
        for key in record.extra:
            self.tally.extra[key] += not (self.template and self.template.reads(key))
        if record.rejected:
            self.tally.rejected += 1
            return
        self.tally.kinds[record.kind] = None
        try:
            if record.kind == "plain":
                self._plain(record)
            else:
                ids, loss = {"chat": self._chat, "pair": self._pair, "text": self._text}[record.kind](record)
                self._add(record, ids, loss)
        except (UserError, RecursionError) as error:
            message = str(error) if isinstance(error, UserError) else "its values nest too deeply."
            raise UserError(
                message if message.startswith(str(self.path)) else f"{place(self.path, record.line)}: {message}"
            ) from None

    # Tokens and masks by kind

    def _chat(self, record: Record) -> tuple[list[int], list[bool]]:
        if self.template is None:
            raise UserError("Chats need a chat template.")
        if self.template.notice:
            self.tally.notes[self.template.notice] = None
        self.tally.chats += 1
        record, whole = self._without_ends(record), self.loss == "all"
        if self.loss == "auto" and not any(message.get("role") == "assistant" for message in record.messages):
            raise UserError(
                "The conversation has no assistant message to learn from: complete it, or learn every token with "
                "--loss all."
            )
        found = encode_chat_report(
            self.tokenizer, self.template, record.messages, record.tools, record.learn_from, whole
        )
        self.tally.open_ended += bool(found.open_ended)
        for missing in found.left_out:
            self.tally.left_out[missing.what] += 1
            self.tally.left_out_first = self.tally.left_out_first or self._place(record, missing.message)
        return found.ids, found.loss

    def _place(self, record: Record, message: int) -> str:
        return place(self.path.name, record.line).replace(",", "") + (f", message {message}" if message else "")

    def _without_ends(self, record: Record) -> Record:
        """The chat with its answers' own end tokens taken away, which the template writes."""
        messages = tuple(
            {**m, "content": self.tally.control.answer(m["content"])}
            if m.get("role") == "assistant" and isinstance(m.get("content"), str)
            else m
            for m in record.messages
        )
        self.tally.control.look(m.get("content") for m in messages)
        return replace(record, messages=messages)

    def _pair(self, record: Record) -> tuple[list[int], list[bool]]:
        if not record.messages and self.tally.control.opens(record.prompt):
            return self._joined(record.prompt, record.completion, special=True)
        if self.template is not None and self.template.origin != "chatml":
            self.tally.notes["Prompts and completions are rendered by the chat template, as user and assistant."] = None
            messages = (
                *record.messages,
                {"role": "user", "content": record.prompt},
                {"role": "assistant", "content": record.completion}
                | ({"reasoning_content": record.reasoning} if record.reasoning else {}),
            )
            return self._chat(Record(record.line, "chat", messages, record.tools, len(messages) - 1))
        if record.tools:
            self.tally.notes["The tools of pairs (tools, functions) are not used, since no template shows them."] = None
        thoughts = f"<think>\n{record.reasoning.strip()}\n</think>\n\n" if record.reasoning else ""
        return self._joined(
            "".join(m["content"] + "\n\n" for m in record.messages) + record.prompt,
            thoughts + record.completion,
            special=False,
        )

    def _joined(self, prompt: str, completion: str, special: bool) -> tuple[list[int], list[bool]]:
        """One text. special: control tokens in it are read as such."""
        ids, starts = self.tokenizer.encode_spans(prompt + completion, special=special)
        at = len(prompt)
        if completion[:1] != " ":  # a space that ends the prompt belongs to the completion's first token
            at = len(prompt.rstrip(" "))
        return self._framed(ids, [self.loss == "all" or start >= at for start in starts])

    def _text(self, record: Record) -> tuple[list[int], list[bool]]:
        if self.loss == "assistant":
            pair = question_and_answer(record.text)
            if pair is None:
                raise UserError(no_assistant(self.path, record))
            self.tally.notes["Texts of the form Q: … A: … are read as questions and answers."] = None
            return self._pair(Record(record.line, "pair", prompt=pair[0], completion=pair[1]))
        ids = self.tokenizer.encode(record.text, special=True, bos=False)
        return self._framed(ids, [True] * len(ids))

    def _framed(self, ids: list[int], loss: list[bool]) -> tuple[list[int], list[bool]]:
        """With BOS as the model's rules say, and EOS at the end; neither of them twice."""
        tokenizer = self.tokenizer
        if tokenizer.add_bos and ids[:1] != [tokenizer.bos]:
            ids, loss = [tokenizer.bos, *ids], [False, *loss]
        if tokenizer.eos is not None and ids and ids[-1] not in tokenizer.eog:
            ids, loss = [*ids, tokenizer.eos], [*loss, True]
        if loss:
            loss[0] = False
        return ids, loss

    # Plain text: one stream of tokens, cut every `context`

    def _plain(self, record: Record) -> None:
        if self.loss == "assistant":
            raise UserError(f"{self.path}: {no_assistant(self.path, record)}")
        ids, starts = self.tokenizer.encode_spans(record.text, special=False)
        lines, line, at = [], record.line, 0
        for start in starts:
            line += record.text.count("\n", at, start)
            lines.append(line)
            at = start
        self.plain.append((ids, lines))
        self._cut_plain(last=False)

    def _cut_plain(self, last: bool) -> None:
        ids = [i for part, _ in self.plain for i in part]
        lines = [n for _, part in self.plain for n in part]
        front = [self.tokenizer.bos] if self.tokenizer.add_bos else []
        if last and ids and self.tokenizer.eos is not None:
            ids.append(self.tokenizer.eos)
            lines.append(lines[-1])
        cuts = cuts_of(len(ids), self.context - len(front), bool(front))
        if not last:  # what follows may belong to the last piece
            cuts = cuts[:-1]
        for at, end in zip(cuts, cuts[1:], strict=False):
            if len(front) + end - at > 1:
                self.builder.add(front + ids[at:end], [True] * (len(front) + end - at), lines[at], self.file)
                self.tally.pieces += 1
        self.plain = [(ids[cuts[-1] :], lines[cuts[-1] :])]

    def end_of_file(self) -> None:
        if self.plain:
            self._cut_plain(last=True)

    # Length

    def _add(self, record: Record, ids: list[int], loss: list[bool]) -> None:
        if not any(loss):
            raise UserError("nothing in this example can be learned: it has fewer than two tokens.")
        if len(ids) <= self.context:
            self.builder.add(ids, loss, record.line, self.file)
            return
        over = len(ids) - self.context
        self.tally.too_long.append((self.path.name, record.line))
        asked = self.overflow.get(record.kind) if isinstance(self.overflow, Mapping) else self.overflow
        how = asked or ("split" if record.kind == "text" else "truncate")
        if how == "error":
            raise UserError(
                f"this example has {len(ids)} tokens, more than the {self.context} of -c: raise -c, or use "
                "--overflow split, truncate or drop."
            )
        if how == "drop":
            self.tally.dropped += 1
        elif how == "truncate":
            at = self._window(ids, loss)
            self.builder.add(ids[at : at + self.context], loss[at : at + self.context], record.line, self.file)
            self.tally.cut_tokens += over
        else:
            self._split(record, ids, loss)

    def _window(self, ids: list[int], loss: list[bool]) -> int:
        """Where to begin keeping: at the front, unless what is learned only comes later."""
        first = loss.index(True)
        return 0 if first < self.context else max(0, min(first - self.context // 2, len(ids) - self.context))

    def _split(self, record: Record, ids: list[int], loss: list[bool]) -> None:
        front = [self.tokenizer.bos] if self.tokenizer.add_bos and ids[0] == self.tokenizer.bos else []
        ids, loss = ids[len(front) :], loss[len(front) :]
        step = self.context - len(front)
        cuts = cuts_of(len(ids), step, bool(front))
        for at, end in zip(cuts, cuts[1:], strict=False):
            piece, learned = front + ids[at:end], [False] * len(front) + loss[at:end]
            if any(learned[1:]):
                self.builder.add(piece, learned, record.line, self.file)
                self.tally.pieces += 1
            else:  # a stretch of a prompt, or a single token: nothing to learn from it
                self.tally.cut_tokens += len(piece) - len(front)

    # The end

    def finish(self, paths: Sequence[Path]) -> Dataset:
        names = ", ".join(str(p) for p in paths)
        if not len(self.builder):
            why = (
                f"all {self.tally.dropped} are longer than the {self.context} tokens of -c"
                if self.tally.dropped
                else f"all {self.tally.rejected} answers are labelled as rejected"
                if self.tally.rejected
                else "the data is empty"
            )
            raise UserError(f"{names}: no example is left to train on, {why}.")
        if self.tally.rejected and (name := next(filter(self.tally.unused.counts.get, LABELS), None)):
            raise UserError(
                f"{names}: {name!r} is false or 0 in some rows, which means a rejected answer, and something other "
                "than true or 1 in others: rename the column."
            )
        report = self.tally.report(self.context)
        built = self.builder.finish(paths, report)
        if not built.loss_tokens:
            raise UserError(f"{names}: no token is left to learn.")
        built.report["learned"] = self.tally.learned(built, self.loss)
        return built
