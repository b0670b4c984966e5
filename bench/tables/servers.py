"""The studio and the server."""

from __future__ import annotations

from tables.render import table


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
