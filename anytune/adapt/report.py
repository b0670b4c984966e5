"""What a command tells at its end, for people; programs get the same numbers as facts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from anytune.adapt.measure import Distance, Measured
from anytune.units import bytes_text

WORSE = (
    "On held-out examples the adapter is farther from its teacher than the model without it, so nothing was written."
)


def distance_facts(found: Distance) -> dict[str, Any]:
    return {"kl": float(found.kl), "same_top": float(found.top), "loss": float(found.nll), "tokens": int(found.tokens)}


def measured_facts(found: Measured) -> dict[str, Any]:
    """JSON-able: before, after and each plain way, with drift on ordinary text beside the teacher's own."""
    plain = {
        name: {**distance_facts(d), "drift": float(found.drift_plain.get(name, 0.0))} for name, d in found.plain.items()
    }
    return {
        "before": distance_facts(found.before),
        "after": distance_facts(found.after),
        "recovered": float(found.recovered),
        "drift": float(found.drift),
        "teacher_drift": float(found.teacher_drift),
        "plain": plain,
        "success": success(found),
    }


def success(found: Measured) -> bool:
    return found.after.kl < found.before.kl


def table(found: Measured, after: str) -> list[str]:
    """Lines: the student before and after and with each plain way, then the teacher's drift."""
    rows = [
        ("no adapter", found.before, 0.0),
        (after, found.after, found.drift),
        *((name, d, found.drift_plain.get(name)) for name, d in found.plain.items()),
    ]
    lines = [
        f"on {found.after.tokens} held-out tokens:   KL to the teacher   recovered   same top token   loss"
        "   drift on ordinary text"
    ]
    for name, d, drift in rows:
        share = 1 - d.kl / found.before.kl if found.before.kl > 0 else 0.0
        moved = "" if drift is None else f"{drift:>12.4f}"
        lines.append(f"  {name:<32} {d.kl:>10.4g} {share:>14.1%} {d.top:>13.1%} {d.nll:>13.3f} {moved}")
    lines.append(f"  {'the teacher itself':<32} {'':>10} {'':>14} {'':>13} {'':>13} {found.teacher_drift:>12.4f}")
    return lines


def text(facts: dict[str, Any], measured: Sequence[Measured], after: str) -> str:
    """All of a result: a table for each task, what it took, the file."""
    lines = []
    for number, found in enumerate(measured):
        if len(measured) > 1:
            lines.append(facts["tasks"][number]["data"])
        lines += table(found, after)
    took = facts["took"]
    line = f"fitted in {took['cpu']:.0f} CPU seconds ({took['seconds']:.0f} s) on {facts['tokens']} tokens"
    lines.append(f"{line}; peak memory {bytes_text(took['peak'])}")
    if facts.get("raised"):
        lines.append(f"a factorization needed a larger ridge than requested: {facts['raised']:.2g}")
    lines += [f"note: {note}" for note in facts.get("notes", ())]
    lines += _verified(facts.get("verified"))
    if not facts["success"]:
        lines.append(WORSE)
    return "\n".join([*lines, *(str(path) for path in facts.get("paths", ()) if facts["success"])])


def _verified(found: dict[str, Any] | None) -> list[str]:
    if found is None:
        return []
    if found["ok"] is None:
        return [f"llama.cpp: not verified ({found['why']})"]
    same = "computes the same" if found["ok"] else "computes SOMETHING ELSE, so nothing was written"
    return [
        f"llama.cpp: {same}, KL {found['kl_mean']:.1e} "
        f"({'an F32 copy of the model' if found['exact'] else 'as it is'}), effect off by {found['error']:.1%}"
    ]
