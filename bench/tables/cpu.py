"""Training on a CPU: speed, memory, start, decoding."""

from __future__ import annotations

from tables.render import result, table, times, where


def train_cpu(data: dict) -> list[str]:
    """Both processors side by side: the ratio depends on what the peer's library does on each."""
    runs = [data, *filter(None, [result("zen4_train_cpu")])]
    names = [run["machine"].get("generation") or run["machine"]["cpu"] for run in runs]
    rows = []
    for shapes in zip(*(run["shapes"] for run in runs), strict=True):
        row = [shapes[0]["shape"].replace("x", " × ")]
        for s in shapes:
            ours, peer = s["anytune"], s[s["peer"]]
            row += [
                f"{ours['tokens_per_s']:.0f} / {peer['tokens_per_s']:.0f}",
                times(s["ratio"]),
                f"{s['ratio_per_cpu_s']:.2f}×",
            ]
        ours, peer = shapes[0]["anytune"], shapes[0][shapes[0]["peer"]]
        rows.append((*row, f"{ours['peak_rss_mib']:.0f} / {peer['peak_rss_mib']:.0f}"))
    figures = [f"{what}, {name}" for name in names for what in ("tok/s", "ratio", "ratio per CPU s")]
    return [
        "anytune / transformers + peft:",
        "",
        *table(("tokens a step", *figures, "peak MiB"), rows),
        *(line for run in runs[1:] for line in ("", where(run))),
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


def first_step(data: dict) -> list[str]:
    return table(
        ("`anytune train` on SmolLM2-135M", "seconds after the start"),
        [
            ("first step begins", f"{data['first_step_begins_s']:.1f}"),
            ("first step done (512 tokens)", f"{data['first_step_ends_s']:.1f}"),
        ],
    )


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
