"""Quantizing, and searching for types."""

from __future__ import annotations

from tables.render import table


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


def adapt_rounding(data: dict) -> list[str]:
    merged = data["results"]["merged"]
    return [
        *table(
            ("type", "size, MiB", "weight error", "change kept", "KL to the pair", "of its KL", "top-1"),
            [
                (
                    t["type"],
                    f"{t['bytes'] / (1 << 20):.1f}",
                    f"{t['error']:.2%}",
                    f"{t['kept']:.1%}",
                    f"{t['kl']:.3g}",
                    f"{t['kl'] / merged['adapter_kl']:.1%}",
                    f"{t['same_top']:.1%}",
                )
                for t in merged["types"]
            ],
        ),
        "",
        f"The adapter moves the base by a KL of {merged['adapter_kl']:.3f} on {merged['tokens']} tokens.",
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
