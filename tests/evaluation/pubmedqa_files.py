"""Small files of PubMedQA's form, made up."""

from __future__ import annotations

import json
from pathlib import Path

WORDS = {"yes": "on the west", "no": "in the rain", "maybe": "at sea"}  # what a question has that is so answered


def write(folder: Path, counts: dict[str, int], tested: dict[str, int]) -> tuple[Path, Path]:
    """Write ori_pqal.json of counts[label] questions a label, and test_ground_truth.json of the first tested[label]."""
    entries, truth = {}, {}
    for label, count in counts.items():
        for number in range(count):
            key = f"{label}{number}"
            entries[key] = {
                "QUESTION": f"Is it {WORDS[label]}, {number}?",
                "CONTEXTS": [f"Wind {number}.", "Rain."],
                "LONG_ANSWER": f"It was {WORDS[label]}.",
                "final_decision": label,
                "MESHES": ["Air"],
            }
            if number < tested[label]:
                truth[key] = label
    source, test = folder / "ori_pqal.json", folder / "test_ground_truth.json"
    source.write_text(json.dumps(entries), "utf-8")
    test.write_text(json.dumps(truth), "utf-8")
    return source, test
