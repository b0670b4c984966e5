"""What a search found, as facts for a program and lines for a person."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from anytune.quantization.search.budget import bytes_of
from anytune.quantization.search.calibrate import Uniform, predicted, sums
from anytune.units import bytes_text, quantity

if TYPE_CHECKING:
    from anytune.quantization.search.run import _Work


def amount(work: _Work, total: int) -> str:
    """What matrices take, in the budget's unit."""
    if work.budget.unit == "cycles":
        return f"{quantity(total)} cycles"
    if work.budget.unit == "bpw":
        weights = work.model.gguf.n_parameters
        return f"{8 * (total + work.budget.limit(work.model.gguf) - work.limit) / weights:.3f} bits a weight"
    return bytes_text(total + int(work.budget.amount) - work.limit)


def facts(
    work: _Work,
    chosen: Mapping[str, str],
    written: Mapping[str, Any],
    measured: Mapping[str, np.ndarray],
    size: int,
    target: Path | None,
) -> dict[str, Any]:
    """Everything, JSON-able. KL is in nats a token."""
    parts = sums(chosen, work.costs)
    guess = predicted(parts, work.factors)
    found = {key: _mean(values) for key, values in measured.items()}
    fitting = [u for u in work.uniform.values() if u.price <= work.limit]
    best = min(fitting, key=lambda u: u.kl, default=None)
    return {
        "path": None if target is None else str(target),
        "budget": {"amount": work.budget.amount, "unit": work.budget.unit},
        "price": sum(work.prices[name][kind] for name, kind in chosen.items()),
        "limit": work.limit,
        "file_bytes": size,
        "bytes": written["bytes_after"],
        "bits_per_weight": written["bits_per_weight"],
        "kl_predicted": guess,
        "kl_sum": sum(parts.values()),
        **{f"kl_{key}": value for key, value in found.items()},
        "ratio": guess / found["measured"]["mean"] if found["measured"]["mean"] else None,
        "factors": work.factors,
        "uniform": [_uniform(work, u) for u in work.uniform.values()],
        "best_uniform": None if best is None else best.kind,
        "tensors": [
            {**t, "kl": work.factors.get(t["to"], 1.0) * work.cost(t["name"], t["to"]), "costs": work.costs[t["name"]]}
            if t["name"] in chosen
            else t
            for t in written["tensors"]
        ],
    }


def _mean(values: np.ndarray) -> dict[str, float]:
    return {
        "mean": float(values.mean()),
        "error": float(values.std() / np.sqrt(max(1, len(values) - 1))),
        "tokens": len(values),
    }


def _uniform(work: _Work, model: Uniform) -> dict[str, Any]:
    tensors = work.model.gguf.tensors
    size = sum(t.nbytes for name, t in tensors.items() if name not in model.formats) + sum(
        bytes_of(tensors[name], kind) for name, kind in model.formats.items()
    )
    return {
        "type": model.kind,
        "bits_per_weight": 8 * size / sum(t.n_elements for t in tensors.values()),
        "price": model.price,
        "fits": model.price <= work.limit,
        "kl": model.kl,
        "error": model.error,
    }


def lines(found: Mapping[str, Any]) -> list[str]:
    """For a person: the types by part of the model, the rivals, predicted against measured."""
    tensors = [t for t in found["tensors"] if "costs" in t]
    parts: dict[str, Counter[str]] = {}
    for t in tensors:
        part = t["name"].split(".")[2] if t["name"].startswith("blk.") else t["name"].removesuffix(".weight")
        parts.setdefault(part, Counter())[t["to"]] += 1
    width = max(map(len, parts))
    made = [
        f"{part:<{width}}  " + ", ".join(f"{number} {kind}" for kind, number in counts.most_common())
        for part, counts in parts.items()
    ]
    made += [
        f"all {u['type']:<8} {u['bits_per_weight']:.2f} bits a weight  KL {u['kl']:.4f} ± {u['error']:.4f}"
        + ("" if u["fits"] else "  (beyond the budget)")
        for u in found["uniform"]
    ]
    measured, held = found["kl_measured"], found.get("kl_held_out")
    made.append(
        f"chosen       {found['bits_per_weight']:.2f} bits a weight  KL {measured['mean']:.4f} "
        f"± {measured['error']:.4f}, predicted {found['kl_predicted']:.4f}"
        + (f"; on other windows {held['mean']:.4f} ± {held['error']:.4f}" if held else "")
    )
    return made
