"""Training on GPUs, through CUDA and through WebGPU."""

from __future__ import annotations

from tables.render import result, table, times


def train_gpu(data: dict) -> list[str]:
    card, rows = data["gpu"], []
    for name, s in data["anytune"].items():
        if "failed" in s:
            rows.append((name, s["blocks"], *["failed"] + ["–"] * 5))
            continue
        beside = name if s["memory"] else s["shape"]
        same = [p for p in data["peers"] if p["beside"] == beside and p.get("ratio")]
        best = max(same, key=lambda p: p["tokens_per_s"], default=None)
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
        + (f"{p['tokens_per_s']:,.0f} tok/s, {p['peak_gib']:.1f} GiB" if "tokens_per_s" in p else "no result in time")
        for p in data["peers"]
    )
    head = ("examples × tokens", "base", "`--dtype`", "`--memory`", "tok/s", "peak, GiB")
    return [
        *table((*head, "of the bf16 GEMM rate", "to the best peer"), rows),
        "",
        f"{card['gpu']}; large bf16 products sustain {card['gemm_tflops_for_two_seconds']:.0f} TFLOP/s at the "
        f"card's power limit. Peers, bf16 base: {told}.",
    ]


def train_gpu_peers(data: dict) -> list[str]:
    """The README's short form: the shapes that a peer ran."""
    rows = [
        (
            p["shape"].replace("x", " × ") + ", least memory" * (p["beside"] != p["shape"]),
            f"{data['anytune'][p['beside']]['tokens_per_s']:,.0f}",
            f"{data['anytune'][p['beside']]['peak_gib']:.1f}",
            p["peer"],
            f"{p['tokens_per_s']:,.0f}",
            f"{p['peak_gib']:.1f}",
            times(p["ratio"]),
        )
        for p in data["peers"]
        if p.get("ratio")
    ]
    return table(("examples × tokens", "anytune, tok/s", "peak, GiB", "peer", "tok/s", "peak, GiB", "ratio"), rows)


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


def full_gpu(data: dict) -> list[str]:
    names = {
        "anytune adamw": "anytune, AdamW",
        "anytune adamw8bit": "anytune, 8-bit AdamW",
        "torch adamw": "torch's fused AdamW",
        "transformers adamw": "transformers, torch's fused AdamW",
        "bitsandbytes adamw8bit": "bitsandbytes' AdamW8bit",
        "transformers adamw8bit": "transformers, bitsandbytes' AdamW8bit",
    }
    steps = [(names[r["trainer"]], f"{r['tokens_per_s']:,.0f}", f"{r['peak_gib']:.1f}") for r in data["steps"]]
    alone = [(names[r["optimizer"]], f"{r['ms']:.1f}", f"{r['bytes_a_weight']:.1f}") for r in data["optimizers"]]
    return [
        *table((f"whole steps, {data['steps'][0]['shape'].replace('x', ' × ')}", "tok/s", "peak, GiB"), steps),
        "",
        *table(("the optimizer alone", "ms a step", "bytes per weight"), alone),
    ]


def delta_gpu(data: dict) -> list[str]:
    peers = data["peers"]
    return table(
        ("examples × tokens", "tok/s", "peak, GiB", "transformers + peft, tok/s", "peak, GiB", "ratio"),
        [
            (
                shape.replace("x", " × "),
                f"{r['tokens_per_s']:,.0f}",
                f"{r['peak_gib']:.1f}",
                f"{peers[shape]['tokens_per_s']:,.0f}",
                f"{peers[shape]['peak_gib']:.1f}",
                f"{r['ratio']:.2f}×",
            )
            for shape, r in data["anytune"].items()
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


def moe_gpu(data: dict) -> list[str]:
    names = {"anytune": "anytune, base in Q4_K", "peft": "transformers + peft"}
    names["peft, checkpointing"] = "transformers + peft, each layer's forward twice"
    mine, rows = data["results"]["anytune"]["tokens_per_s"], []
    for name, title in names.items():
        row = data["results"].get(name)
        if row and "tokens_per_s" in row:
            ratio = mine / row["tokens_per_s"]
            rows.append((title, f"{row['tokens_per_s']:,.0f}", f"{row['peak_gib']:.1f}", f"{ratio:.2f}×"))
        elif row:
            rows.append((title, row["failed"].split(":")[0], "–", "–"))
    large, grouped = data["gpu"]["gemm_tflops"], data["gpu"]["grouped_tflops"]
    return [
        *table(("", "tok/s", "peak, GiB", "anytune to it"), rows),
        "",
        f"{data['layers']} layers. One large product: {large:.0f} TFLOP/s; grouped products of this shape: "
        + ", ".join(f"{name} {rate:.0f} ({100 * rate / large:.0f} %)" for name, rate in grouped.items())
        + ".",
    ]
