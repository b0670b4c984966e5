"""What training changes in the answers."""

from __future__ import annotations

from tables.render import table


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
        f"All {sum(data['data'].values())} e-mails of {data['corpus']}, split by `anytune data build email`: "
        f"{data['data']['train']} trained on, {data['data']['test']} held out and measured; {data['steps']} steps, "
        f"{data['train_seconds']} s.",
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


def interval(value, form: str = "{:.3f}") -> str:
    """A mean with its interval; a dash where there is none."""
    if value is None or value[0] is None:
        return "–"
    return f"{form.format(value[0])} [{form.format(value[1])}, {form.format(value[2])}]"


def accuracy(figures: dict) -> str:
    return interval((100 * figures["accuracy"], *(100 * x for x in figures["interval"])), "{:.1f}")


def parity(data: dict) -> list[str]:
    sides, j, ours = data["sides"], data["judge"], data["first"]
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
    return [
        *lines,
        "",
        f"Judge ({j['judge']}): {ours} / peft / ties = {j['wins']} / {j['losses']} / {j['ties']}, win rate "
        f"{interval(j['win_rate'], '{:.2f}')}.",
        "",
        *engines(data, ("cuda", "webgpu")),
    ]


def engines(data: dict, wanted: tuple[str, ...] = ()) -> list[str]:
    """A row for what trained; wanted: devices that have a row also where they did not."""
    rows = []
    for name, s in data["sides"].items():
        if name != "base":
            made = s["training"]
            rows.append(
                (
                    name,
                    made["hardware"],
                    f"{made['losses'][0]:.4f} → {made['losses'][-1]:.4f}",
                    interval(s["cosine"]),
                    interval(s["Jaccard"]),
                    accuracy(s),
                    f"{s['same_answers_as_first']} of {data['questions']}",
                )
            )
    rows += [(name, "not run here: needs a card", *5 * "–") for name in wanted if name not in data["sides"]]
    head = ("trained on", "hardware", "loss, first and last step", "cosine", "Jaccard", "accuracy, %")
    return table((*head, f"answers equal to {data['first']}'s"), rows)


def real_models(data: dict) -> list[str]:
    def kl(found: dict) -> str:
        return f"{found['kl_mean']:.1e}" + ("" if found["ok"] else ", too much")

    rows = [
        (
            m["name"],
            m["model"]["type"],
            kl(m["verify"]["base"]),
            kl(m["verify"]["with_adapter"]),
            f"{sum(m['train']['losses'][:5]) / 5:.2f} → {sum(m['train']['losses'][-5:]) / 5:.2f}",
            accuracy(m["accuracy"]["base"]["likelihood"]),
            accuracy(m["accuracy"]["adapter"]["likelihood"]),
        )
        for m in data["models"]
    ]
    rows += [(name, "not tried: no file of it was on this machine", *5 * "–") for name in data["not_tried"]]
    head = ("model", "type", "KL to llama.cpp", "with the adapter", "loss, first and last five of 50 steps")
    m = data["models"][0]
    return [
        *table((*head, "accuracy of the base, %", "with the adapter, %"), rows),
        "",
        f"Always saying {m['majority']['label']} would be right in {100 * m['majority']['accuracy']:.1f} % of the "
        f"{m['questions']} questions: so few steps teach the form of the answer.",
    ]
