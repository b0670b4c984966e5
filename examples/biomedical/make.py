"""The files of this folder, made from PubMedQA's official ones: the same bytes each time.

    python examples/biomedical/make.py ori_pqal.json test_ground_truth.json [-o FOLDER]

Of the 500 questions outside the official test set, COUNT are drawn, as evenly by answer as they allow, and cut into
train, validation and test; so an adapter that was trained on them may still be scored on the official test set.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import numpy as np

from anytune.evaluation.pubmedqa import LABELS, Source, ask, read_official, read_test
from anytune.files import atomic_write

COUNT, HELD, SEED = 330, 33, 42  # questions in all, of validation and of test each
SETTING, WORDING = "reasoning-free", "pubmedqa"
ENDS = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")


def draw(sources: list[Source]) -> dict[str, list[Source]]:
    """train, validation and test. Rare answers come whole, and the others share the rest."""
    random = np.random.default_rng(SEED)
    shuffled = [sources[i] for i in random.permutation(len(sources))]
    own = {label: [source for source in shuffled if source.label == label] for label in LABELS}
    left, taken = COUNT, []
    for number, label in enumerate(sorted(LABELS, key=lambda name: len(own[name]))):
        taken.append(own[label][: -(-left // (len(LABELS) - number))])
        left -= len(taken[-1])
    spread = sorted(
        (((k + 0.5) / len(some), source) for some in taken for k, source in enumerate(some)),
        key=lambda one: (one[0], one[1].id),
    )
    order = [source for _, source in spread]  # any stretch has every answer in its share
    test, validation, train = order[:HELD], order[HELD : 2 * HELD], order[2 * HELD :]
    return {"train": [train[i] for i in random.permutation(len(train))], "validation": validation, "test": test}


def chat(source: Source, labels: tuple[str, ...] = LABELS) -> dict:
    question = ask(source, SETTING, WORDING, labels)
    return {
        "id": source.id,
        "messages": [
            {"role": "user", "content": question.prompt},
            {"role": "assistant", "content": question.answers[question.right]},
        ],
    }


def pair(source: Source, labels: tuple[str, ...] = LABELS) -> dict:
    question = ask(source, SETTING, WORDING, labels)
    return {"id": source.id, "prompt": question.prompt, "completion": question.answers[question.right]}


def text(source: Source) -> dict:
    """Question, answer and the first sentence of the conclusion as running text."""
    answer = {"yes": "Yes", "no": "No", "maybe": "Uncertain"}[source.label]
    reason = ENDS.split(source.conclusion.strip())[0]
    return {"text": f"Q: {source.question.strip()}\nA: {answer}. Rationale: {reason}"}


def make(official: Path, test: Path, folder: Path) -> None:
    sources = read_official(official)
    chosen = read_test(test, sources)
    for name, split in draw([source for source in sources if source.id not in chosen]).items():
        binary = [source for source in split if source.label != "maybe"]
        for place, rows in (
            (folder, map(chat, split)),
            (folder / "pairs", map(pair, split)),
            (folder / "text", map(text, split)),
            (folder / "yes-no", (pair(source, ("yes", "no")) for source in binary)),
        ):
            place.mkdir(parents=True, exist_ok=True)
            with atomic_write(place / f"{name}.jsonl", "w") as file:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("official", type=Path, metavar="ORI_PQAL")
    parser.add_argument("test", type=Path, metavar="TEST_GROUND_TRUTH")
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent, metavar="FOLDER")
    options = parser.parse_args()
    make(options.official, options.test, options.output)
