"""PubMedQA (Jin et al. 2019, arXiv:1909.06146): questions that papers' titles ask, answered yes, no or maybe.

Read from the official files (ori_pqal.json and test_ground_truth.json), from rows with `question` and `label`, or from
what `anytune data build pubmedqa` wrote (see recipe.py). Either way the result is a list of Questions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anytune.errors import UserError
from anytune.text import reading
from anytune.text.rows import json_rows, kind_of, loads

LABELS = ("yes", "no", "maybe")
SETTINGS = ("question-only", "reasoning-free", "reasoning-required")
SIZE_LIMIT = 256 << 20  # bytes of a file that is one JSON object
_SAME = {"uncertain": "maybe"}  # what other files call a label


@dataclass(frozen=True)
class Wording:
    """How a question is put. prompts: text by setting; answers: what is answered, in the order of LABELS.

    A prompt ends in a space: it belongs to the answer's first token where prompt and answer are simply joined.
    """

    prompts: Mapping[str, str]
    answers: tuple[str, str, str]


_ASK = "Question: {question}\nAnswer ({choices}): "
_ABSTRACT = "Abstract: {abstract}\n"
_QA = "Q: {question}\nA: "
WORDINGS = {
    "pubmedqa": Wording({"question-only": _ASK} | dict.fromkeys(SETTINGS[1:], _ABSTRACT + _ASK), LABELS),
    "qa": Wording(
        {"question-only": _QA} | dict.fromkeys(SETTINGS[1:], "{abstract}\n" + _QA), ("Yes", "No", "Uncertain")
    ),
}


@dataclass(frozen=True)
class Source:
    """One labelled question as it is in its file. id: PubMed's number, or a line's; conclusion: LONG_ANSWER."""

    id: str
    question: str
    label: str
    conclusion: str = ""
    contexts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Question:
    """A question as a model gets it: the prompt, an answer for each of its labels, and which of them is right."""

    id: str
    prompt: str
    answers: tuple[str, ...]
    right: int
    labels: tuple[str, ...] = LABELS


def chosen_labels(text: str | None) -> tuple[str, ...]:
    """What --labels means: two or three of LABELS with commas, in their order. Raises UserError."""
    words = [] if text is None else [word.strip() for word in text.split(",") if word.strip()]
    found = {label_of(word) for word in words}
    if text is not None and (None in found or not 2 <= len(found) == len(words)):
        raise UserError(
            f"--labels takes two or three of {', '.join(LABELS)} with commas, such as yes,no, not {text!r}."
        )
    return tuple(label for label in LABELS if text is None or label in found)


def ask(source: Source, setting: str, wording: str, labels: Sequence[str] = LABELS) -> Question:
    """The question in words, its label being one of `labels`. Raises UserError where the source lacks what the setting
    shows."""
    form = WORDINGS[wording]
    abstract = {
        "question-only": "",
        "reasoning-free": source.conclusion,
        "reasoning-required": "\n".join(source.contexts),
    }[setting]
    if setting != "question-only" and not abstract.strip():
        raise UserError(
            f"Question {source.id} has no {'conclusion' if setting == 'reasoning-free' else 'abstract'} to "
            f"show: use --setting question-only."
        )
    choices = f"{', '.join(labels[:-1])} or {labels[-1]}"
    prompt = form.prompts[setting].format(question=source.question.strip(), abstract=abstract.strip(), choices=choices)
    return Question(
        source.id,
        prompt,
        tuple(form.answers[LABELS.index(label)] for label in labels),
        labels.index(source.label),
        tuple(labels),
    )


def label_of(text: Any) -> str | None:
    """yes, no or maybe, whatever the case, also for "uncertain"; None for anything else."""
    word = text.strip().lower().rstrip(".") if isinstance(text, str) else ""
    word = _SAME.get(word, word)
    return word if word in LABELS else None


def read_official(path: str | Path) -> list[Source]:
    """ori_pqal.json: PubMed's number -> {QUESTION, CONTEXTS, LONG_ANSWER, final_decision}. Raises UserError."""
    found = []
    for number, row in _object(path).items():
        where = f"{path}, question {number}"
        if not isinstance(row, dict):
            raise UserError(f"{where}: an entry must be an object, not {kind_of(row)}.")
        contexts = row.get("CONTEXTS", [])
        texts = [row.get("QUESTION"), row.get("LONG_ANSWER", ""), *(contexts if isinstance(contexts, list) else [None])]
        if not all(isinstance(text, str) for text in texts) or not texts[0].strip():
            raise UserError(f"{where}: QUESTION and LONG_ANSWER must be texts, and CONTEXTS a list of texts.")
        found.append(Source(number, texts[0], _label(row.get("final_decision"), where), texts[1], tuple(contexts)))
    return found


def read_test(path: str | Path, sources: Sequence[Source]) -> set[str]:
    """test_ground_truth.json: the numbers of the test questions, whose labels must agree with the sources'."""
    known, found = {source.id: source.label for source in sources}, _object(path)
    for number, label in found.items():
        if number not in known:
            raise UserError(
                f"{path} names the question {number}, which the other file does not have: take both from "
                "one release of PubMedQA."
            )
        if _label(label, f"{path}, question {number}") != known[number]:
            raise UserError(
                f"{path} answers question {number} with {label}, and the other file with {known[number]}: "
                "take both from one release of PubMedQA."
            )
    return set(found)


def read_questions(
    path: str | Path,
    test: str | Path | None = None,
    *,
    setting: str | None = None,
    wording: str | None = None,
    labels: Sequence[str] = LABELS,
) -> list[Question]:
    """The questions to be scored whose answer is one of `labels`, with these as the possible answers.

    path: the official file (then `test` names those of its questions that are meant), JSON lines with `question` and
    `label`, or with `prompt` and `completion` (or `messages`) as `data build` writes them, which are taken as they are.
    setting: one of SETTINGS (None: question-only for rows, else reasoning-required); wording: one of WORDINGS (None: qa
    for rows, else pubmedqa). Raises UserError.
    """
    if Path(path).suffix.lower() == ".json":
        sources = read_official(path)
        if test is None:
            raise UserError(f"{path} holds training questions too: give --test test_ground_truth.json.")
        chosen = read_test(test, sources)
        return [
            ask(s, setting or "reasoning-required", wording or "pubmedqa", labels)
            for s in sources
            if s.id in chosen and s.label in labels
        ]
    if test is not None:
        raise UserError(f"--test belongs to PubMedQA's ori_pqal.json, and {path} is not JSON of that kind.")
    found = []
    for line, row in json_rows(reading.Stream(reading.pieces(path)), path):
        where = f"{path}, line {line}"
        if "question" in row and "label" in row:
            source = _row(row, line, where)
            if source.label in labels:
                found.append(ask(source, setting or "question-only", wording or "qa", labels))
        elif setting or wording:
            raise UserError(f"{where}: this file contains finished prompts: omit --setting and --wording.")
        elif (question := _finished(row, line, where)).labels[question.right] in labels:
            answers = tuple(question.answers[LABELS.index(label)] for label in labels)
            right = labels.index(LABELS[question.right])
            found.append(Question(question.id, question.prompt, answers, right, tuple(labels)))
    if not found:
        raise UserError(f"{path} holds no questions{'' if labels == LABELS else ' with these labels'}.")
    return found


def _row(row: dict, line: int, where: str) -> Source:
    conclusion = row.get("rationale_src", "")
    if not isinstance(row["question"], str) or not row["question"].strip() or not isinstance(conclusion, str):
        raise UserError(f"{where}: question and rationale_src must be texts.")
    return Source(f"line {line}", row["question"], _label(row["label"], where), conclusion)


def _finished(row: dict, line: int, where: str) -> Question:
    pair = row.get("prompt"), row.get("completion")
    messages = row.get("messages")
    if isinstance(messages, list) and len(messages) == 2 and all(isinstance(m, dict) for m in messages):
        pair = tuple(m.get("content") for m in messages)
    if not all(isinstance(text, str) and text for text in pair):
        raise UserError(f"{where}: each row needs question and label, or prompt and completion, or two messages.")
    prompt, answer = pair
    right = LABELS.index(_label(answer, where))
    answers = next((w.answers for w in WORDINGS.values() if w.answers[right] == answer), None)
    if answers is None:
        raise UserError(
            f"{where}: the answer {answer!r} is none of {', '.join(WORDINGS['pubmedqa'].answers)} (or of "
            f"{', '.join(WORDINGS['qa'].answers)})."
        )
    return Question(str(row.get("id", f"line {line}")), prompt, answers, right)


def _label(value: Any, where: str) -> str:
    label = label_of(value)
    if label is None:
        raise UserError(f"{where}: the label {value!r:.40} is none of yes, no and maybe.")
    return label


def _object(path: str | Path) -> dict[str, Any]:
    path = Path(path)
    try:
        if path.stat().st_size > SIZE_LIMIT:
            raise UserError(f"{path} is larger than {SIZE_LIMIT >> 20} MiB, which no file of PubMedQA's labels is.")
        found = loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError):
        raise UserError(f"{path} is not valid JSON: fetch it again.") from None
    if not isinstance(found, dict) or not found:
        raise UserError(f"{path} must be one JSON object of questions, as PubMedQA's files are.")
    return found
