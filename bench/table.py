"""Tables in the docs, made from bench/results/*.json, so that no number in them is typed by hand.

python bench/table.py            # rewrite every place between <!-- numbers:NAME --> and <!-- /numbers -->
python bench/table.py --check    # exit code 1 if a place differs from the results
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from figures import FIGURES

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).resolve().parent / "results"
PEERS = ("numpy", "torch", "transformers", "peft", "xllamacpp")
PLACE = re.compile(r"(<!-- numbers:(\w+) -->\n)(.*?)(<!-- /numbers -->)", re.DOTALL)


def result(name: str) -> dict | None:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text("utf-8")) if path.exists() else None


def table(head: tuple[str, ...], rows: list[tuple]) -> list[str]:
    line = "| " + " | ".join(head) + " |"
    return [line, "|" + " --- |" * len(head), *("| " + " | ".join(map(str, row)) + " |" for row in rows)]


def where(data: dict) -> str:
    """The line under a table: command, machine, date."""
    m, v = data["machine"], data["versions"]
    peers = ", ".join(f"{name} {v[name]}" for name in PEERS if name in v)
    return (
        f"`{data['command']}`, {data['date'][:10]}, commit {data['commit']}: {m['cpu']}, {m['cores']} cores, "
        f"{m['memory_gib']:.0f} GiB; Python {m['python']}, {peers}." + (f" {data['note']}" if "note" in data else "")
    )


def times(ratio: float) -> str:
    return f"**{ratio:.2f}×**"


def train_cpu(data: dict) -> list[str]:
    rows = []
    for s in data["shapes"]:
        ours, peer = s["anytune"], s[s["peer"]]
        rows.append(
            (
                s["shape"].replace("x", " × "),
                f"{ours['tokens_per_s']:.0f}",
                f"{peer['tokens_per_s']:.0f}",
                times(s["ratio"]),
                f"{ours['tokens_per_cpu_s']:.0f}",
                f"{peer['tokens_per_cpu_s']:.0f}",
                f"{ours['peak_rss_mib']:.0f}",
                f"{peer['peak_rss_mib']:.0f}",
            )
        )
    return table(
        (
            "tokens a step",
            "anytune tok/s",
            "peft tok/s",
            "ratio",
            "anytune tok per CPU s",
            "peft tok per CPU s",
            "anytune peak MiB",
            "peft peak MiB",
        ),
        rows,
    )


def memory(data: dict) -> list[str]:
    rows = [
        (
            "SmolLM2-135M Q4_1, " + name,
            f"{s['peak_rss_mib']:.0f}",
            f"{s['tokens_per_s']:.0f}",
            f"{s['seconds_per_step']:.1f}",
            "–",
        )
        for name, s in data["smollm2"].items()
    ]
    if big := data.get("tinyllama"):
        rows.append(
            (
                f"TinyLlama-1.1B shape, Q4_0 ({big['file_mib']:.0f} MiB file), --memory {data['memory']}, "
                "-c 128 -ub 128, r=8",
                f"{big['peak_rss_mib']:.0f}",
                f"{big['tokens_per_s']:.1f}",
                f"{big['seconds_per_step']:.1f}",
                f"{big['mib_read_per_step']:.0f}",
            )
        )
    return table(("", "peak RSS of the process, MiB", "tok/s", "s per step", "MiB read a step"), rows)


def decode(data: dict) -> list[str]:
    return table(
        ("threads", "anytune tok/s", "llama.cpp tok/s", "ratio"),
        [
            (
                t["threads"],
                f"{t['anytune']['tokens_per_s']:.0f}",
                f"{t['llama.cpp']['tokens_per_s']:.0f}",
                f"{t['ratio']:.2f}×",
            )
            for t in data["threads"]
        ],
    )


def first_step(data: dict) -> list[str]:
    return table(
        ("`anytune train` on SmolLM2-135M", "seconds after the start"),
        [
            ("first step begins", f"{data['first_step_begins_s']:.1f}"),
            ("first step done (512 tokens)", f"{data['first_step_ends_s']:.1f}"),
        ],
    )


def estimate(data: dict) -> list[str]:
    return table(
        ("examples × tokens", "rank", "`--memory`", "estimate, MiB", "measured peak, MiB", "error"),
        [
            (
                s["shape"].replace("x", " × "),
                s["rank"],
                s["memory"] or "–",
                *(
                    ("refused", "–", "–")
                    if "refused" in s
                    else (f"{s['estimate_mib']:.0f}", f"{s['peak_rss_mib']:.0f}", f"{s['error_percent']:+.1f} %")
                ),
            )
            for s in data["settings"]
        ],
    )


def quantize(data: dict) -> list[str]:
    speed = table(
        ("type", "anytune", "`gguf` package", "llama.cpp"),
        [
            (s["type"], *(f"{s[side]:.0f}" if side in s else "–" for side in ("anytune", "gguf", "llama.cpp")))
            for s in data["speed"]
        ],
    )
    sides = ("anytune", "llama.cpp")
    quality = table(
        ("type", "importance", *(f"{what}, {side}" for what in ("error", "KL", "perplexity") for side in sides)),
        [
            (
                q["type"],
                "yes" if q["importance"] else "no",
                *(f"{q[side]['error']:.3g}" for side in sides),
                *(f"{q[side]['kl']:.4f} ± {q[side]['kl_uncertainty']:.4f}" for side in sides),
                *(f"{q[side]['perplexity']:.2f}" for side in sides),
            )
            for q in data["quality"]
        ],
    )
    exact = data["exact"]
    return [
        *speed,
        "",
        *quality,
        "",
        f"Unrounded: perplexity {exact['perplexity']:.2f} on {exact['tokens']} tokens. "
        f"The `gguf` package is {data['versions']['gguf']}.",
    ]


def search(data: dict) -> list[str]:
    rows = []
    for found in data["results"]:
        rows += [
            (f"all {u['type']}", f"{u['bits_per_weight']:.2f}", f"{u['kl']:.3f} ± {u['error']:.3f}", "–", "–")
            for u in sorted(found["uniform"], key=lambda u: u["kl"])
            if u["fits"]
        ]
        measured, held = found["kl_measured"], found["kl_held_out"]
        rows.append(
            (
                f"**search, {found['budget']['amount']:g}**",
                f"{found['bits_per_weight']:.2f}",
                f"{measured['mean']:.3f} ± {measured['error']:.3f}",
                f"{found['kl_predicted']:.3f}",
                f"{held['mean']:.3f} ± {held['error']:.3f}",
            )
        )
    beyond = {
        u["type"]: u
        for found in data["results"]
        for u in found["uniform"]
        if not any(u["type"] == v["type"] and v["fits"] for other in data["results"] for v in other["uniform"])
    }
    return [
        *table(("types", "bits a weight", "KL", "predicted", "KL on other windows"), rows),
        "",
        f"{data['model']}; KL in nats a token, {data['results'][0]['kl_measured']['tokens']} tokens. Larger than "
        "every budget: "
        + ", ".join(
            f"all {u['type']} {u['bits_per_weight']:.2f} bits, {u['kl']:.3f}"
            for u in sorted(beyond.values(), key=lambda u: u["bits_per_weight"])
        )
        + ".",
    ]


def lowering(data: dict) -> list[str]:
    return [
        *table(
            ("steps", "bits a weight", "loss", "unrounded", "apart", ""),
            [
                (
                    f"{s['first_step']}–{s['last_step']}",
                    f"{s['bits_per_weight']:.2f}",
                    f"{s['loss']:.4f}",
                    f"{s['reference']:.4f}",
                    f"{s['apart']:.2%}",
                    "" if s["kept"] else "taken back",
                )
                for s in data["stages"]
            ],
        ),
        "",
        f"{data['model']}, {data['tokens_a_step']} tokens a step; over all steps the mean loss is "
        f"{data['mean_apart']:.2%} from the unrounded run's.",
    ]


def train_gpu(data: dict) -> list[str]:
    card, rows = data["gpu"], []
    for name, s in data["anytune"].items():
        if "failed" in s:
            rows.append((name, s["blocks"], *["failed"] + ["–"] * 5))
            continue
        same = [p for p in data["peers"] if p["shape"] == s["shape"] and "tokens_per_s" in p]
        best = max(same, key=lambda p: p["tokens_per_s"]) if same and s["memory"] is None else None
        rows.append(
            (
                s["shape"].replace("x", " × "),
                s["blocks"],
                "fp8" if s["dtype"] == "fp8" else "bf16",
                s["memory"] or "–",
                f"{s['tokens_per_s']:,.0f}",
                f"{s['peak_gib']:.2f}",
                f"{100 * s['fraction_of_lasting_gemm']:.0f} %",
                f"{s['tokens_per_s'] / best['tokens_per_s']:.2f}×" if best else "–",
            )
        )
    told = "; ".join(
        f"{p['peer']}, {p['shape'].replace('x', ' × ')}: "
        + (f"{p['tokens_per_s']:,.0f} tok/s, {p['peak_gib']:.1f} GiB" if "tokens_per_s" in p else "did not end in time")
        for p in data["peers"]
    )
    return [
        *table(
            (
                "examples × tokens",
                "base",
                "`--dtype`",
                "`--memory`",
                "tok/s",
                "peak, GiB",
                "of the bf16 GEMM rate",
                "to the best peer",
            ),
            rows,
        ),
        "",
        f"{card['gpu']}; large bf16 products keep up {card['gemm_tflops_for_two_seconds']:.0f} TFLOP/s at the "
        f"card's power limit. Peers, bf16 base: {told}.",
    ]


def train_webgpu(data: dict) -> list[str]:
    peak, training, decoding = data["peak"], [], []
    for name, r in data["anytune"].items():
        if "shape" not in r:
            decoding.append(
                (
                    name,
                    r["blocks"],
                    f"{r['tokens_per_s']:.0f}",
                    f"{r['read_gb_per_s']:,}",
                    f"{100 * r['fraction_of_bandwidth']:.0f} %",
                )
            )
            continue
        training.append(
            (
                name.replace("x", " × ", 1),
                r["blocks"],
                f"{r['tokens_per_s']:,.0f}",
                f"{100 * r['fraction_of_fma']:.0f} %",
                f"{r['over_anchor']:.1f}×" if "over_anchor" in r else "–",
                f"{r['peak_gib']:.2f}",
                f"{r['peak_over_weights']:.2f}",
                f"{r['cpu_ms_per_step']:.0f}",
            )
        )
    anchors = " and ".join(f"{speed} tok/s ({kind})" for kind, speed in data["anchors_tokens_per_s"].items())
    return [
        *table(
            (
                "tokens a step",
                "base",
                "tok/s",
                "of the FMA rate",
                "to the anchor",
                "peak, GiB",
                "to the weights",
                "CPU ms a step",
            ),
            training,
        ),
        "",
        *table(("batch 1", "base", "tok/s", "weights read, GB/s", "of the copy rate"), decoding),
        "",
        f"{peak['device']} through Vulkan: {peak['fma_tflops']} TFLOP/s of float32 multiply-adds without memory "
        f"and copying at {peak['copy_gb_per_s']:,} GB/s, measured in the same run through WebGPU. The anchor, not "
        f"from this run, is llama-finetune-lora's Vulkan build with tensor cores on an H100, 1 × 128: {anchors}.",
    ]


def loss_webgpu(data: dict) -> list[str]:
    rows = []
    for run in (data, result("loss_webgpu_software")):
        if run is not None:
            rows.append(
                (
                    run["runs"]["webgpu"]["name"],
                    run["steps"],
                    run["tokens_a_step"],
                    f"{100 * run['most_apart']:.4f} %",
                    "agrees" if run["verify"]["agrees"] else "**differs**",
                )
            )
    return table(
        ("device", "steps", "tokens a step", "largest difference of a step's loss", "`anytune verify` of the adapter"),
        rows,
    )


def decode_gpu(data: dict) -> list[str]:
    return table(
        ("", "tok/s", "ms a token", "weights read, GB/s", "of the copy rate"),
        [
            (
                name,
                f"{r['tokens_per_s']:,.0f}",
                f"{r['ms_per_token']:.2f}",
                f"{r['read_gb_per_s']:,}",
                f"{100 * r['fraction_of_bandwidth']:.0f} %",
            )
            for name, r in data["anytune"].items()
        ],
    )


def two_gpus(data: dict) -> list[str]:
    names = {
        "one": "one GPU",
        "two": "two GPUs",
        "two_sharded": "two GPUs, `--shard`",
        "one_fp8": "one GPU, `--dtype fp8`",
        "two_fp8": "two GPUs, `--dtype fp8`",
    }
    peers = "".join(
        f" {p['peer']}, {p['processes']} GPU{'s' * (p['processes'] > 1)}: {p['tokens_per_s']:,.0f} tok/s."
        for p in data.get("peers", ())
        if "tokens_per_s" in p
    )
    rows = [
        (
            names[name],
            "–",
            f"{r['tokens_per_s']:,.0f}",
            f"{r['ratio']:.2f}×",
            f"{r['peak_gib']:.2f}",
            f"{r['curve_apart']:.1g}",
        )
        for name, r in data["runs"].items()
    ]
    tight, memory = data["tight"], data["tight"]["memory"]
    rows += [
        (
            names[name],
            memory,
            f"{tight[name]['tokens_per_s']:,.0f}",
            "–",
            f"{tight[name]['peak_gib']:.2f}",
            f"{tight[name]['curve_apart']:.1g}",
        )
        for name in ("one", "two_sharded")
    ]
    return [
        *table(("", "`--memory` of each", "tok/s", "to one", "peak of each, GiB", "loss curves apart"), rows),
        "",
        f"{data['gpu']['name']}. With {memory} one GPU cannot hold the base: it copies the weights from the host "
        f"at each use.{peers}",
    ]


def train_cpu_bf16(data: dict) -> list[str]:
    return table(
        (
            "tokens a step",
            "cpu-bf16 tok/s",
            "numpy tok/s",
            "peft bf16 tok/s",
            "ratio",
            "cpu-bf16 peak MiB",
            "peft peak MiB",
        ),
        [
            (
                s["shape"].replace("x", " × "),
                *(f"{s[n]['tokens_per_s']:.0f}" for n in ("cpu-bf16", "numpy", s["peer"])),
                times(s["ratio"]),
                *(f"{s[n]['peak_rss_mib']:.0f}" for n in ("cpu-bf16", s["peer"])),
            )
            for s in data["shapes"]
        ],
    )


def style(data: dict) -> list[str]:
    def shown(value: list[float], form: str = ".2f") -> str:
        return f"{value[0]:{form}} [{value[1]:{form}}, {value[2]:{form}}]"

    rows = [
        (f"distance: {name}", shown(data["author"][name]), shown(sides["base"]), shown(sides["wren"]))
        for name, sides in data["distances"].items()
    ]
    rows += [
        (f"`{h['habit']}`", *(f"{100 * h[side]:.0f} %" for side in ("author", "base", "wren")))
        for h in data["habits"][:6]
    ]
    rows.append(("perplexity of the e-mails", "–", *(shown(data["perplexity"][side]) for side in ("base", "wren"))))
    rows += [
        (
            name,
            "–",
            *(shown([factor * v for v in data["to_reference"][name][side]], ".1f") for side in ("base", "wren")),
        )
        for name, factor in (("chrF", 1), ("ROUGE-L", 100), ("cosine", 100))
    ]
    rows.append(
        ("words, times the author's", "1", *(shown(data["answers"][side]["length_ratio"]) for side in ("base", "wren")))
    )
    rows.append(
        ("ended by itself", "–", *(f"{100 * data['answers'][side]['ended'][0]:.0f} %" for side in ("base", "wren")))
    )
    return [
        *table(("", "author", "base", "adapter"), rows),
        "",
        f"{data['messages']} held-out e-mails of {data['corpus']}; {data['data']['train']} trained on, "
        f"{data['steps']} steps, {data['train_seconds']} s.",
    ]


def quality(data: dict) -> list[str]:
    def side(figures: dict | None) -> str:
        if figures is None:
            return "–"
        low, high = figures["interval"]
        return f"{100 * figures['accuracy']:.1f} [{100 * low:.1f}, {100 * high:.1f}] ({len(figures['seeds'])})"

    rows = []
    for s in data["summary"]:
        for method in ("likelihood", "generation"):
            m = s[method]
            apart = m.get("difference")
            rows.append(
                (
                    s["task"],
                    s["model"],
                    method,
                    f"{100 * s['majority']:.1f}",
                    *(side(m.get(who)) for who in ("base", "anytune", "peft")),
                    "–"
                    if apart is None
                    else f"{100 * apart['mean']:+.1f} [{100 * apart['interval'][0]:+.1f}, "
                    f"{100 * apart['interval'][1]:+.1f}]",
                    "–" if apart is None else "yes" if apart["within"] else "**no**",
                )
            )
    missing = data["missing"]
    total = len(missing) + len(data["cells"])
    return [
        *table(
            ("task", "model", "scored by", "always the same", "base", "anytune", "peft", "anytune − peft", "within"),
            rows,
        ),
        *(["", f"{len(data['cells'])} of {total} cells are done; not yet: {', '.join(missing)}."] if missing else []),
    ]


def studio(data: dict) -> list[str]:
    load, point, long, many, up = (data[name] for name in ("load", "point", "long", "watchers", "upload"))
    return table(
        ("", "measured"),
        [
            (
                "first load",
                f"{load['kB']} kB gzipped, {load['median_seconds']:.1f} s on a slow phone ({load['network']}, "
                f"CPU {load['cpu']})",
            ),
            ("a step's point reaches the page", f"{point['worst_seconds']:.1f} s at most, of {point['points']}"),
            (
                "a run of 200,000 steps",
                f"opens in {long['median_seconds']:.1f} s, moves at {long['frames_a_second']:.0f} frames a second",
            ),
            ("200 watchers, 1,000 runs", f"{many['MiB_most']:.0f} MiB resident"),
            ("upload of 1 GiB", f"{up['growth_MiB']:.1f} MiB more"),
            (
                "killed at random moments",
                f"{data['kills']['kills']} times: {data['kills']['acknowledged']:,} acknowledged "
                f"requests, {data['kills']['lost']} lost",
            ),
        ],
    )


def serve(data: dict) -> list[str]:
    rows = []
    for name, parts in data["backends"].items():
        if one := parts.get("stream"):
            rows.append(
                (
                    name,
                    f"one answer of 128 tokens: {one['median']['anytune']:.0f} tokens/s, llama.cpp's own server "
                    f"{one['median']['llama.cpp']:.0f} ({one['ratio']:.2f})",
                )
            )
        if many := parts.get("together"):
            rows.append(
                (
                    name,
                    f"{many['streams']} at once over {many['adapters']} adapters: {many['median']:.0f} tokens/s, one "
                    f"after another {many['one_after_another_tokens_per_s']:.0f}; {many['equal_to_alone']} of "
                    f"{many['of']} answers equal to the one computed alone",
                )
            )
        if kept := parts.get("cached"):
            rows.append(
                (
                    name,
                    f"first token after {kept['prompt_tokens']} tokens of prompt: {kept['median_fresh_s']:.2f} s, "
                    f"{kept['median_kept_s']:.3f} s where they are kept",
                )
            )
    return table(("backend", "measured"), rows)


def fpga_cores(data: dict) -> list[str]:
    rows = [
        (
            c["core"],
            c["type"],
            f"{c['simulated']['blocks']:,}",
            f"{c['simulated']['blocks_that_differ']:,}",
            f"{c['simulated']['cycles_a_block']:.3f}",
            f"{c['gweights_per_s_of_a_thread']['numpy']:.2f}",
            f"{c['gweights_per_s_of_a_thread']['numba']:.2f}",
            f"{c['mhz_that_equals_numba']:.0f}",
        )
        for c in data["cores"]
    ]
    return table(
        (
            "core",
            "type",
            "blocks simulated",
            "that differ",
            "cycles a block",
            "NumPy, Gweights/s a thread",
            "Numba, Gweights/s a thread",
            "clock that equals Numba, MHz",
        ),
        rows,
    )


def fits(data: dict) -> list[str]:
    def cell(plan: dict) -> str:
        how = {"recomputes": "fits, some layers twice"}.get(plan["how"], plan["how"])
        return how + ("" if plan["peak_mib"] is None else f" ({plan['peak_mib'] / 1024:.1f})")

    return table(
        ("model", "type", "file, GiB", *(f"{size} GiB" for size in data["sizes_gib"])),
        [
            (
                row["model"],
                row["type"],
                f"{row['file_mib'] / 1024:.1f}",
                *(cell(row["sizes"][str(size)]) for size in data["sizes_gib"]),
            )
            for row in data["rows"]
        ],
    )


def aarch64(data: dict) -> list[str]:
    s, t = data["suite"], data["training"]
    how = f"emulated by QEMU as a {data['processor']}" if data["emulated"] else "on such a processor"
    rows = [(f"`{name}.py`", f["passed"], f["failed"], f["skipped"]) for name, f in s["files"].items()]
    total = [sum(f[key] for f in s["files"].values()) for key in ("passed", "failed", "skipped")]
    return [
        f"The suite's core, {how}, with Python {t['there']['python']} and NumPy {t['there']['numpy']}:",
        "",
        *table(("", "passed", "failed", "skipped"), [*rows, ("**all**", *total)]),
        "",
        f"{len(t['there']['losses'])} steps on {t['model']} with compiled kernels: the losses differ from x86-64's by "
        f"{t['largest_difference']:.1e} at most.",
    ]


def onefile(data: dict) -> list[str]:
    def said(file: dict) -> str:
        if not file["tried"]:
            return "not tried: no such processor was there"
        names = ", ".join(c["command"].split()[1].strip("-") for c in file["tried"])
        return names + (", emulated by QEMU; nothing else was tried" if file["emulated"] else "")

    return table(
        ("file", "MiB", "commands that ran with it in an empty environment"),
        [(f"`{f['file']}`", f"{f['mib']:.0f}", said(f)) for f in data["files"]],
    )


def interval(value, form: str = "{:.3f}") -> str:
    """A mean with its interval; a dash where there is none."""
    if value is None or value[0] is None:
        return "–"
    return f"{form.format(value[0])} [{form.format(value[1])}, {form.format(value[2])}]"


def parity(data: dict) -> list[str]:
    sides, j, ours = data["sides"], data["judge"], data["first"]

    def accuracy(side: dict) -> str:
        return interval((100 * side["accuracy"], *(100 * x for x in side["interval"])), "{:.1f}")

    lines = table(
        ("", "cosine", "Jaccard", "win rate over base", "accuracy, %"),
        [
            (
                {ours: f"anytune ({ours})"}.get(name, name),
                interval(sides[name]["cosine"]),
                interval(sides[name]["Jaccard"]),
                interval((j["against_base"].get(name) or {}).get("win_rate"), "{:.2f}"),
                accuracy(sides[name]),
            )
            for name in ("base", ours, "peft")
        ],
    )
    lines += [
        "",
        f"Judge ({j['judge']}): {ours} / peft / ties = {j['wins']} / {j['losses']} / {j['ties']}, win rate "
        f"{interval(j['win_rate'], '{:.2f}')}.",
        "",
    ]
    rows = []
    for name, s in sides.items():
        if name != "base":
            made = s["training"]
            rows.append(
                (
                    name,
                    made["hardware"],
                    f"{made['losses'][0]:.3f} → {made['losses'][-1]:.3f}",
                    interval(s["cosine"]),
                    interval(s["Jaccard"]),
                    accuracy(s),
                    f"{s['same_answers_as_first']} of {data['questions']}",
                )
            )
    rows += [(name, "not run here: needs a card", *5 * "–") for name in data["missing"]]
    head = ("trained on", "hardware", "loss, first and last step", "cosine", "Jaccard", "accuracy, %")
    return lines + table((*head, f"answers equal to {ours}'s"), rows)


def real_models(data: dict) -> list[str]:
    def accuracy(model: dict, side: str) -> str:
        found = model["accuracy"][side]["likelihood"]
        return interval((100 * found["accuracy"], *(100 * x for x in found["interval"])), "{:.1f}")

    def kl(found: dict) -> str:
        return f"{found['kl_mean']:.1e}" + ("" if found["ok"] else ", too much")

    rows = [
        (
            m["name"],
            m["model"]["type"],
            kl(m["verify"]["base"]),
            kl(m["verify"]["with_adapter"]),
            f"{sum(m['train']['losses'][:5]) / 5:.2f} → {sum(m['train']['losses'][-5:]) / 5:.2f}",
            f"{m['train']['timing']['tokens_per_s']:.0f}",
            accuracy(m, "base"),
            accuracy(m, "adapter"),
        )
        for m in data["models"]
    ]
    rows += [(name, "not tried: no file of it was on this machine", *6 * "–") for name in data["not_tried"]]
    head = ("model", "type", "KL to llama.cpp", "with the adapter", "loss, first and last five of 50 steps", "tok/s")
    return table((*head, "accuracy of the base, %", "with the adapter, %"), rows)


def hardware_engine(data: dict) -> list[str]:
    rows = []
    for core in ("engine", "dequantizer", "quantizer", "quantizer_q8_0"):
        found = result(f"hardware_{core}")
        if found is None:
            continue
        used, path = found["runs"][0]["used"], found["runs"][0]["worst_path"]
        wires = sum(step["ns"] for step in path if step["what"] == "routing")
        rows.append(
            (
                core,
                f"**{found['median_megahertz']:.1f}**",
                ", ".join(f"{run['megahertz']:.1f} ({run['seed']})" for run in found["runs"]),
                f"{found['luts']:,}",
                f"{used['TRELLIS_FF'][0]:,}",
                used.get("DP16KD", [0])[0],
                used.get("MULT18X18D", [0])[0],
                f"{sum(step['ns'] for step in path):.1f}, {wires:.1f} of it wires",
            )
        )
    tools, chosen = data["tools"], data["settings"]
    return [
        *table(
            (
                "core",
                "clock, MHz, median",
                "each seed",
                "LUTs",
                "registers",
                "block RAMs",
                "multipliers",
                "slowest path, ns",
            ),
            rows,
        ),
        "",
        f"ECP5-85 (LFE5U-85F, CABGA756), speed grade {chosen['grade']}; "
        f"{', '.join(f'{k} {v}' for k, v in tools.items())}; synth_ecp5 without further flags, no pads; "
        "the dequantizer with --operand-registers.",
    ]


def fpga_plan(data: dict) -> list[str]:
    rows = [
        (
            model,
            board,
            f"{p['board']['engines']} x {p['mhz']:g}",
            f"{p['cycles']['step'] / 1e9:.2f}",
            f"{p['tokens_per_second']:.2f}",
            f"{p['footprint']['streamed'] / 1e6:,.0f}",
            f"{p['decode']['tokens_per_second']:.2f}",
            f"{p['decode']['occupancy']:.1%}",
            "{:.1f} to {:.0f}".format(*p["energy"]["millijoules_per_token"]["all"]),
        )
        for model, boards in data["models"].items()
        for board, p in boards.items()
    ]
    cpu = data["cpu"]
    return [
        *table(
            (
                "shape, Q4_0",
                "board",
                "engines x MHz",
                "cycles a step, 10⁹",
                "training, tokens/s",
                "memory while training, MB",
                "one token's pass, tokens/s",
                "cells busy in it",
                "energy, mJ a token (estimate)",
            ),
            rows,
        ),
        "",
        f"Steps of 128 tokens, rank 16. {cpu['model']} on this machine's CPU: {cpu['tokens_per_second']:.1f} tokens/s "
        f"in training (float32, {cpu['threads']} threads, measured{', ' + cpu['date'] if 'date' in cpu else ''}).",
    ]


def nf4(data: dict) -> list[str]:
    rows = [
        (
            t["type"],
            f"{t['bits_per_weight']:.3f}",
            f"{t['error']:.5f}",
            f"{t['kl']:.3f} ± {t['kl_uncertainty']:.3f}",
            f"{t['perplexity']:.2f}",
        )
        for t in data["types"]
    ]
    return [
        *table(("type", "bits a weight", "error of weights", "KL, nats a token", "perplexity"), rows),
        "",
        f"{data['model']}, {data['tokens']} tokens; perplexity unrounded {data['perplexity']:.2f}. Errors are relative "
        "to the weights' squares.",
    ]


TABLES = {
    f.__name__: f
    for f in (
        train_cpu,
        memory,
        decode,
        first_step,
        estimate,
        quantize,
        train_gpu,
        decode_gpu,
        two_gpus,
        train_cpu_bf16,
        style,
        quality,
        train_webgpu,
        loss_webgpu,
        search,
        lowering,
        studio,
        serve,
        fpga_cores,
        fits,
        aarch64,
        onefile,
        parity,
        real_models,
        hardware_engine,
        fpga_plan,
        nf4,
    )
}


def report() -> list[str]:
    """What is not measured is left out."""
    found = [(what, figure, name, data) for what, figure, name in FIGURES if (data := result(name)) is not None]
    rows = [
        (what, figure(data), f"[{name}.json](../bench/results/{name}.json), `{data['command']}`")
        for what, figure, name, data in found
    ]
    return table(("what", "figure", "from, and its command"), rows)


def filled(text: str) -> str:
    def fill(match: re.Match) -> str:
        if match[2] == "report":
            return "\n".join([match[1], *report(), "", match[4]])
        data = result(match[2])
        lines = ["*Not measured yet.*"] if data is None else [*TABLES[match[2]](data), "", where(data)]
        return match[1] + "\n" + "\n".join(lines) + "\n\n" + match[4]

    return PLACE.sub(fill, text)


def main() -> int:
    stale = []
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        text = path.read_text("utf-8")
        if (new := filled(text)) != text:
            stale.append(path.relative_to(ROOT))
            if "--check" not in sys.argv:
                path.write_text(new, "utf-8")
    for path in stale:
        print(f"{path}: " + ("differs from bench/results" if "--check" in sys.argv else "rewritten"))
    return int(bool(stale) and "--check" in sys.argv)


if __name__ == "__main__":
    sys.exit(main())
