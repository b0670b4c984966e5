"""A process beside the studio for what needs a model: its tokenizer, its weights. It is ended when idle, so that the
studio itself stays small, and may die of a model too large without taking the studio along.

stdin: a JSON line a call, {"call": name, "args": {…}}; stdout: {"item": …} as they come, then {"result": …} or
{"error": sentence}. SIGINT breaks a call off.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import signal
import sys
import traceback
from collections.abc import Iterator
from typing import Any

from anytune.errors import UserError

CALLS = {
    name: module
    for module, names in {
        "reading": "look examples recognise",
        "estimating": "estimate facts adapter_facts presets models",
        "comparing": "compare",
    }.items()
    for name in names.split()
}
IDLE = 300  # seconds


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", errors="replace", newline="\n")
    os.dup2(2, 1)  # what a library prints is no answer
    calls = sys.stdin.buffer
    while True:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # between two calls there is nothing to break off
        if not select.select([calls], [], [], IDLE)[0]:
            return
        line = calls.readline()
        if not line:
            return
        call = json.loads(line)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            answer = {"result": _run(call, answers)}
        except UserError as error:
            answer = {"error": " ".join(str(error).split())}
        except KeyboardInterrupt:
            answer = {"error": "It was cancelled."}
        except MemoryError:
            answer = {"error": "Not enough memory for this model: choose a smaller one."}
        except Exception:
            traceback.print_exc()
            answer = {"error": "Internal error; the studio's log has the details."}
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        _say(answers, answer)


def _run(call: dict[str, Any], answers: Any) -> Any:
    name = call["call"]
    made = getattr(importlib.import_module(f"anytune.studio.{CALLS[name]}"), name)(**call["args"])
    if not isinstance(made, Iterator):
        return made
    for item in made:
        _say(answers, {"item": item})
    return None


def _say(answers: Any, value: dict[str, Any]) -> None:
    answers.write(json.dumps(value, ensure_ascii=False) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
