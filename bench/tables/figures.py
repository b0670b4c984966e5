"""The figures of docs/report.md: (what, how it follows from a result, the result's name). table.py writes them."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

from tables.render import result, table

Data = dict[str, Any]


def train_cpu(d: Data) -> str:
    def of(run: Data) -> str:
        ratios = [shape["ratio"] for shape in run["shapes"]]
        return f"{min(ratios):.2f} to {max(ratios):.2f} times on {run['machine']['generation']}"

    return ", ".join(of(run) for run in (d, result("zen4_train_cpu")) if run is not None)


def train_cpu_bf16(d: Data) -> str:
    return ", ".join(f"{shape['ratio']:.2f} times" for shape in d["shapes"])


def train_gpu(d: Data) -> str:
    ours = d["anytune"]["8x1024"]["tokens_per_s"]
    best = max((p for p in d["peers"] if p["shape"] == "8x1024" and p.get("ratio")), key=lambda p: p["tokens_per_s"])
    return f"{ours:,.0f} tok/s, {best['ratio']:.2f} times {best['peer']}"


def quality(d: Data) -> str:
    row = next(s for s in d["summary"] if s["task"] == "official" and s["model"] == "smollm2-135m")["likelihood"]
    return ", ".join(f"{100 * row[side]['accuracy']:.1f}" for side in ("base", "anytune", "peft")) + " %"


def parity(d: Data) -> str:
    sides = (("base", "base"), ("anytune", d["first"]), ("peft", "peft"))
    return ", ".join(f"{name} {d['sides'][side]['cosine'][0]:.3f}" for name, side in sides)


def search(d: Data) -> str:
    found = d["results"][-1]
    best = min((u for u in found["uniform"] if u["fits"]), key=lambda u: u["kl"], default=None)
    other = f" where all {best['type']} have {best['kl']:.3f}" if best else ""
    return f"KL {found['kl_measured']['mean']:.3f}{other}"


def adapt_prompt(d: Data) -> str:
    found = d["results"]
    left = [row["after"]["kl"] for name, row in found.items() if name.startswith("closed form and 15 steps")]
    closed = found["closed form, rank 16"]
    return (
        f"KL {statistics.median(left):.3f} of {closed['before']['kl']:.3f} left on held-out e-mails "
        f"({closed['after']['kl']:.3f} without gradient steps)"
    )


def fpga_cores(d: Data) -> str:
    counts = [core["simulated"] for core in d["cores"]]
    return f"{sum(c['blocks_that_differ'] for c in counts)} of {min(c['blocks'] for c in counts):,} a core, at least"


def fpga_sim(d: Data) -> str:
    return f"losses within {100 * d['most_apart']:.2f} % in {d['steps']} steps"


def nf4(d: Data) -> str:
    return ", ".join(f"{t['type']} {t['kl']:.3f} ({t['bits_per_weight']:.2f} bits)" for t in d["types"])


FIGURES: tuple[tuple[str, Callable[[Data], str], str], ...] = (
    ("LoRA steps on the CPU, float32, against peft", train_cpu, "train_cpu"),
    ("the same in bf16", train_cpu_bf16, "train_cpu_bf16"),
    ("one GPU, 8 × 1024 tokens, Qwen3-1.7B's shape", train_gpu, "train_gpu"),
    ("two GPUs", lambda d: f"{d['runs']['two']['ratio']:.2f} times one", "two_gpus"),
    (
        "one H100 through Vulkan, 2 × 1024",
        lambda d: f"{d['anytune']['2x1024']['tokens_per_s']:,.0f} tok/s",
        "train_webgpu",
    ),
    ("memory: a 1.1B shape in `--memory 300MiB`", lambda d: f"{d['tinyllama']['peak_rss_mib']:.0f} MiB", "memory"),
    ("PubMedQA's 500 official questions, SmolLM2: base, anytune, peft", quality, "quality"),
    ("answers' cosine to the references, 33 questions", parity, "parity"),
    ("a prompt as an adapter, rank 16", adapt_prompt, "adapt_prompt"),
    ("a type for every tensor, 4.5 bits a weight", search, "search"),
    ("hardware cores' blocks that differ from the `gguf` package", fpga_cores, "fpga_cores"),
    ("an adapter trained with the cores' arithmetic, simulated", fpga_sim, "fpga_sim"),
    ("4-bit types' KL to the unrounded model", nf4, "nf4"),
)


def report() -> list[str]:
    """What is not measured is left out."""
    found = [(what, figure, name, data) for what, figure, name in FIGURES if (data := result(name)) is not None]
    rows = [
        (what, figure(data), f"[{name}.json](../bench/results/{name}.json), `{data['command']}`")
        for what, figure, name, data in found
    ]
    return table(("what", "figure", "from, and its command"), rows)
