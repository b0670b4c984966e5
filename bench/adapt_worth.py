"""What a prompt in weights is worth: tokens and seconds of an answer in llama.cpp, and a blind comparison of style.

    python bench/adapt.py prompt && python bench/adapt_worth.py

The held-out requests of examples/email are answered by the bare model, by the model behind the prompt of bench/adapt.py
(a system message and five e-mails), with the adapter that the prompt was distilled into, and with an adapter that AdamW
made in as much CPU time. Each has a llama.cpp server of its own; they take turns, request by request, greedily. Styles
are judged as `anytune evaluate style` does, by distances to the author's held-out e-mails; and blind, request by
request: which of two answers, whose origin the judge does not see, is nearer to the author in more of the measures.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import common

ANSWER, PROMPTED, DISTILLED, GRADIENT, BARE = 120, "behind the prompt", "distilled", "AdamW alone", "bare"


def serve(series: dict[str, Any]) -> None:
    """A child: one server, an answer for each line of stdin."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = series["model"]
    if series["adapter"]:
        adapter = xllamacpp.CommonAdapterLoraInfo()
        adapter.path, adapter.scale = series["adapter"], 1.0
        params.lora_adapters = [adapter]
    params.n_ctx, params.n_parallel, params.n_gpu_layers, params.verbosity = 2048, 1, 0, 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = series["threads"]
    server, left = xllamacpp.Server(params), iter(series["prompts"])

    def ask(ids: list[int], tokens: int, cached: bool) -> dict[str, Any]:
        return server.handle_completions(
            {"prompt": ids, "n_predict": tokens, "temperature": 0.0, "cache_prompt": cached}
        )

    def turn() -> dict[str, Any]:
        ids = next(left)
        held = ask(ids, 1, True)["timings"]  # by a server that still holds what the last request began with
        answer = ask(ids, ANSWER, False)
        times = answer["timings"]
        return {
            "text": answer["choices"][0]["text"],
            "prompt_tokens": len(ids),
            "tokens": times["predicted_n"],
            "prompt_seconds": times["prompt_ms"] / 1e3,
            "seconds": (times["prompt_ms"] + times["predicted_ms"]) / 1e3,
            "read_tokens_if_held": held["prompt_n"],
            "prompt_seconds_if_held": held["prompt_ms"] / 1e3,
        }

    ask(series["prompts"][-1], 8, False)  # a first run reads the file
    common.serve({"ready": True}, turn, lambda: {})


def answers(b: Any, context: Any, requests: list, adapters: dict[str, Path | None]) -> dict[str, list[dict[str, Any]]]:
    """{series: an answer with its times for each request}."""
    from anytune.adapt.data import Context
    from anytune.generation.prompts import encode_rendered

    children = []
    for name, path in adapters.items():
        before = context if name == PROMPTED else Context()
        prompts = [
            encode_rendered(
                b.model.tokenizer, b.model.template.render(before.before([request]), None, add_generation_prompt=True)
            )
            for request in requests
        ]
        job = b.folder / f"worth-{len(children)}.json"
        job.write_text(
            json.dumps(
                {
                    "name": name,
                    "model": str(b.path),
                    "adapter": path and str(path),
                    "threads": b.args.threads,
                    "prompts": prompts,
                }
            )
        )
        children.append(
            common.Child(name, ["bench/adapt_worth.py", "--serve", str(job)], common.environment(b.args.threads))
        )
    rounds = common.take_turns(children, len(requests), pause=0.0)
    for child in children:
        child.end()
    return {name: [row[number] for row in rounds] for number, name in enumerate(adapters)}


def blind(author: list[str], one: list[str], other: list[str], made: list) -> dict[str, int]:
    """Of how many requests the one answer, the other, or neither is nearer to the author: by more of the measures."""
    import numpy as np

    once = np.ones((1, len(author)))
    votes = np.zeros(len(author))
    for measure in made:
        profile = measure.profiles(author, once)
        far = [
            measure.distance(measure.profiles(texts, np.eye(len(texts))), np.repeat(profile, len(texts), 0))
            for texts in (one, other)
        ]
        votes += np.nan_to_num(np.sign(far[1] - far[0]))
    return {"first": int((votes > 0).sum()), "second": int((votes < 0).sum()), "equal": int((votes == 0).sum())}


def main() -> None:
    from adaptations.prompt import PERSONA, SHOTS
    from adaptations.shared import Bench, emails
    from anytune.adapt.data import Context
    from anytune.evaluation.bootstrap import resampled
    from anytune.evaluation.style import _distances
    from anytune.evaluation.stylometry import measures

    options = common.parser(__doc__)
    options.add_argument("--folder", default=str(common.ROOT / "runs" / "bench-adapt"))
    options.add_argument("--requests", type=int, default=20, help="how many of the held-out requests are answered")
    args = options.parse_args()
    args.part, args.suffix, args.again, args.device, args.dtype = "prompt", "", False, "numpy", "auto"
    b = Bench(args)
    context = Context(PERSONA, tuple(message for row in emails("train")[:SHOTS] for message in row))
    held = emails("heldout")[: args.requests]
    adapters = {
        BARE: None,
        PROMPTED: None,
        DISTILLED: b.folder / "distilled-0.gguf",
        GRADIENT: b.folder / "gradient-0.gguf",
    }
    found = answers(b, context, [row[0] for row in held], adapters)
    author = [row[1]["content"] for row in held]
    texts = {"base" if name == BARE else name: [row["text"] for row in rows] for name, rows in found.items()}
    made = measures(author, texts["base"])
    styles = _distances(made, author, texts, resampled(len(author), 0), 0)
    pairs = {
        f"{DISTILLED} or {other}": blind(author, texts[DISTILLED], texts[other], made)
        for other in (PROMPTED, GRADIENT, "base")
    }
    series = {
        name: {
            key: statistics.median(row[key] for row in rows) for key in rows[0] if isinstance(rows[0][key], int | float)
        }
        for name, rows in found.items()
    }
    for name, rows in found.items():
        series[name]["seconds_a_token"] = statistics.median(
            (row["seconds"] - row["prompt_seconds"]) / max(row["tokens"], 1) for row in rows
        )
    common.save(
        "adapt_worth",
        args,
        b.before,
        model=b.path.name,
        requests=len(held),
        medians=series,
        distances=styles["distances"],
        author=styles["author"],
        blind=pairs,
        answers={name: [row["text"] for row in rows[:3]] for name, rows in found.items()},
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(json.loads(Path(sys.argv[2]).read_text()))
    else:
        main()
