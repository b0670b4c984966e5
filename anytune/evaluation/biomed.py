"""Questions with two or three known answers, put to a model and its adapters: by likelihood and by what they write.

The prompt is run once: every answer is scored, and the reply written, from its keys and values in the cache.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from anytune.errors import UserError
from anytune.evaluation.kept import Kept
from anytune.evaluation.pubmedqa import LABELS, Question, label_of
from anytune.evaluation.statistics import classification, mcnemar

if TYPE_CHECKING:
    from anytune.adapter.adapter import Adapter
    from anytune.model import Model
    from anytune.model.decoder import Decoder

BATCH = 2048  # tokens of keys and values held at once
NEW_TOKENS = 16  # of a reply
_WORD = re.compile(r"\b(yes|no|maybe|uncertain)\b", re.IGNORECASE)


@dataclass
class Answers:
    """What one model said. log_likelihoods: float64 [questions, labels], nats; replies: None if none were asked for."""

    name: str
    log_likelihoods: np.ndarray
    replies: list[str] | None
    labels: tuple[str, ...] = LABELS

    @property
    def likeliest(self) -> list[int]:
        return self.log_likelihoods.argmax(axis=1).tolist()

    @property
    def written(self) -> list[int] | None:
        """Class numbers of the replies; -1: no answer in it."""
        return None if self.replies is None else [answer_in(reply, self.labels) for reply in self.replies]


def answer_in(reply: str, labels: Sequence[str] = LABELS) -> int:
    """The label (its number) that the first of the words yes, no, maybe, uncertain in a reply names; -1 if that is none
    of them."""
    found = _WORD.search(reply)
    label = label_of(found[0]) if found else None
    return labels.index(label) if label in labels else -1


def answer(
    model: Model,
    questions: Sequence[Question],
    adapter: Adapter | None = None,
    *,
    name: str = "base",
    raw: bool | None = None,
    new_tokens: int = NEW_TOKENS,
    batch: int = BATCH,
    kept: Kept | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Answers:
    """Put all questions to the model with one adapter, or without.

    An answer's likelihood is that of its tokens after the prompt, the end token not among them. raw: prompt and answer
    simply joined; False: through the chat template; None: as the adapter was trained, or as `generate` decides.
    new_tokens: greedy reply at most so long; 0: none. batch: tokens of cache at once. kept: where whole batches of
    `name` are looked up and kept. progress: called with (questions done, of how many). Raises UserError for a question
    that the model's context cannot hold.
    """
    from anytune.generation.generate import decode
    from anytune.generation.sampling import Sampling

    prepared = [_encode(model, adapter, question, raw) for question in questions]
    longest = max(len(ids) for sequences, _ in prepared for ids in sequences)
    if longest > model.config.context:
        which = next(q.id for q, (s, _) in zip(questions, prepared, strict=True) if max(map(len, s)) == longest)
        raise UserError(f"Question {which} has {longest} tokens, and the model's context is {model.config.context}.")
    context = min(longest + new_tokens, model.config.context)
    slots = max(1, min(len(questions), batch // context))
    scores, replies = np.empty((len(questions), len(questions[0].labels))), []
    decoder = model.decoder(adapter=adapter, batch=slots, context=context)
    opening = _shared([ids for sequences, _ in prepared for ids in sequences])  # say, a system message: kept
    for low in range(0, len(questions), slots):
        part = prepared[low : low + slots]
        known = None if kept is None else kept.get(name, low, len(part))
        if known is not None:
            scores[low : low + len(part)] = [row[0] for row in known]
            replies += [row[1] for row in known]
            if progress is not None:
                progress(low + len(part), len(questions))
            continue
        for slot in range(slots):
            decoder.truncate(slot, opening)
        scores[low : low + len(part)] = _score(decoder, [sequences for sequences, _ in part])
        if new_tokens:
            made: list[Any] = []
            for _ in decode(
                decoder,
                model.tokenizer,
                [sequences[0][:first] for sequences, first in part],
                Sampling(temperature=0),
                max_tokens=new_tokens,
                replies=made,
            ):
                pass
            replies += [reply.text for reply in made]
        if kept is not None:
            said = replies[low:] if new_tokens else [None] * len(part)
            kept.put(
                name, low, [[row.tolist(), text] for row, text in zip(scores[low : low + len(part)], said, strict=True)]
            )
        if progress is not None:
            progress(low + len(part), len(questions))
    return Answers(name, scores, replies if new_tokens else None, questions[0].labels)


def _encode(model: Model, adapter: Adapter | None, question: Question, raw: bool | None) -> tuple[list[list[int]], int]:
    """(ids of the prompt with each answer, without what follows it; where the answer begins), as training has them."""
    from anytune.generation.prompts import template_of, wants_chat
    from anytune.text.mask import encode_chat

    tokenizer = model.tokenizer
    chat = wants_chat(model, adapter) if raw is None else not raw
    sequences, starts = [], []
    for text in question.answers:
        if chat:
            messages = [{"role": "user", "content": question.prompt}, {"role": "assistant", "content": text}]
            ids, learned = encode_chat(tokenizer, template_of(model, adapter), messages)
        else:
            ids, at = tokenizer.encode_spans(question.prompt + text)
            learned = [start >= len(question.prompt.rstrip(" ")) for start in at]
            if tokenizer.add_bos:
                ids, learned = [tokenizer.bos, *ids], [False, *learned]
        own = [
            place
            for place, (token, yes) in enumerate(zip(ids, learned, strict=True))
            if yes and token not in tokenizer.eog
        ]
        if not own:
            raise UserError(
                f"Question {question.id}: the answer {text!r} merges with the prompt's last token; end the prompt "
                "with a space or a newline."
            )
        sequences.append(list(map(int, ids[: own[-1] + 1])))
        starts.append(own[0])
    return sequences, min(starts)


def _score(decoder: Decoder, tasks: list[list[list[int]]]) -> np.ndarray:
    """float64 [tasks, answers]: each answer's log-likelihood; afterwards the slots hold what the answers share."""
    shared = [_shared(sequences) for sequences in tasks]
    empty: list[list[int]] = [[] for _ in decoder.lengths]

    def feed(pieces: dict[int, list[int]]) -> np.ndarray:
        logits = decoder.feed([pieces.get(slot, none) for slot, none in enumerate(empty)])
        logits = logits[: len(tasks)].astype(np.float64)
        logits -= logits.max(axis=1, keepdims=True)
        return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))

    after = feed(
        {
            slot: sequences[0][decoder.lengths[slot] : at]
            for slot, (sequences, at) in enumerate(zip(tasks, shared, strict=True))
        }
    )
    scores = np.zeros((len(tasks), len(tasks[0])))
    for number in range(len(tasks[0])):
        rest = [sequences[number][at:] for sequences, at in zip(tasks, shared, strict=True)]
        scores[:, number] = [after[slot, ids[0]] for slot, ids in enumerate(rest)]
        for step in range(1, max(map(len, rest))):
            going = {slot: [ids[step - 1]] for slot, ids in enumerate(rest) if step < len(ids)}
            logs = feed(going)
            for slot in going:
                scores[slot, number] += logs[slot, rest[slot][step]]
        for slot, at in enumerate(shared):
            decoder.truncate(slot, at)
    return scores


def _shared(sequences: list[list[int]]) -> int:
    """How many tokens all have in common at the start; every sequence keeps at least one of its own."""
    shortest = min(map(len, sequences))
    return next((i for i in range(shortest) if len({ids[i] for ids in sequences}) > 1), shortest - 1)


def evaluate(questions: Sequence[Question], runs: Sequence[Answers]) -> dict[str, Any]:
    """Facts about all runs on the same questions, JSON-able.

    questions, majority (the share of the most frequent label), runs: name -> method (likelihood, generation) -> the
    figures of `classification`; comparisons: `mcnemar` of each pair of runs by method, in the order of the runs.
    """
    truth, labels = [question.right for question in questions], questions[0].labels
    counts = np.bincount(truth, minlength=len(labels))
    methods: dict[str, dict[str, list[int]]] = {"likelihood": {run.name: run.likeliest for run in runs}}
    if all(run.replies is not None for run in runs):
        methods["generation"] = {run.name: run.written for run in runs}
    comparisons = []
    for method, said in methods.items():
        for a, b in combinations(said, 2):
            right = [[x == y for x, y in zip(said[name], truth, strict=True)] for name in (a, b)]
            comparisons.append({"method": method, "first": a, "second": b, **mcnemar(*right)})
    return {
        "questions": len(truth),
        "labels": dict(zip(labels, counts.tolist(), strict=True)),
        "majority": {"label": labels[int(counts.argmax())], "accuracy": float(counts.max() / len(truth))},
        "runs": {
            run.name: {method: classification(truth, said[run.name], labels) for method, said in methods.items()}
            for run in runs
        },
        "comparisons": comparisons,
    }
