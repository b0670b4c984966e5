"""The hardware cores: clocks, boards, throughput."""

from __future__ import annotations

from tables.render import result, table


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
