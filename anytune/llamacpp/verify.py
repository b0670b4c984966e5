"""The proof: the same file and adapter in llama.cpp, and whether its next-token distributions are ours.

Compared at positions of a text, token ids in, with the adapter and without: KL(llama.cpp || anytune), the
likeliest token, and the change of log-probabilities that the adapter makes.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from anytune.errors import UserError
from anytune.files import check_room
from anytune.llamacpp.judge import llamacpp_logprobs
from anytune.memory import available_bytes

if TYPE_CHECKING:
    from anytune.adapter.adapter import Adapter
    from anytune.model import Model

TEXT = (
    "The ferry left a little after six, while the harbour was still grey. Mara counted the crates twice: 14 "
    'of oranges, 3 of books, and one that nobody claimed. "If it ticks, we throw it overboard," she said, '
    "and the captain laughed. In Lisbon, a letter was waiting for her. def area(r): return 3.14159 * r ** 2  "
    "# a circle"
)
EXACT_KL, ROUNDED_KL = 1e-5, 1e-2
WORST = {EXACT_KL: 1, ROUNDED_KL: 10}  # the worst position's KL may be so many times the limit of the mean
SURE = {EXACT_KL: 0.01, ROUNDED_KL: 0.5}  # nats between the two likeliest tokens, above which we must agree
CHANGE = {EXACT_KL: 0.02, ROUNDED_KL: 0.5}  # relative error allowed in the change that the adapter makes
NO_CHANGE = 1e-4  # nats: an adapter that moves log-probabilities by less than this does nothing
FLOOR = -20.0  # log-probabilities below this are left out of the change: they are noise that nobody samples


@dataclass(frozen=True)
class Comparison:
    """Distances at each position, in nats. kl: float64 [n]; agree: bool [n]; margin: float64 [n], between
    llama.cpp's two likeliest tokens; noise: root mean square difference of log-probabilities."""

    kl: np.ndarray
    agree: np.ndarray
    margin: np.ndarray
    noise: float

    def facts(self, limit: float) -> dict[str, Any]:
        sure = self.margin > SURE[limit]
        close = self.kl.mean() < limit and self.kl.max() < WORST[limit] * limit
        good = bool(close and self.agree[sure].all())
        return {
            "kl_max": float(self.kl.max()),
            "kl_mean": float(self.kl.mean()),
            "limit": limit,
            "top1_agreement": float(self.agree.mean()),
            "positions": int(self.kl.size),
            "ok": good,
        }


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """float64 [n, vocab] log-probabilities of logits (or of log-probabilities that do not quite sum to 1)."""
    x = logits.astype(np.float64)
    x -= x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def compare(theirs: np.ndarray, ours: np.ndarray) -> Comparison:
    """Compare log-probabilities float64 [n, vocab]."""
    kl = (np.exp(theirs) * (theirs - ours)).sum(axis=-1)
    two = np.partition(theirs, -2, axis=-1)[:, -2:]
    likely = theirs > FLOOR
    noise = float(np.sqrt(np.mean((theirs - ours)[likely] ** 2)))
    return Comparison(np.maximum(kl, 0.0), theirs.argmax(-1) == ours.argmax(-1), two[:, 1] - two[:, 0], noise)


def compare_change(
    theirs: tuple[np.ndarray, np.ndarray], ours: tuple[np.ndarray, np.ndarray], limit: float, noise: float
) -> dict[str, Any]:
    """How the change that an adapter makes compares: each argument is (without, with) as log-probabilities.

    relative_error: |ours - theirs| / |theirs| over all tokens likelier than e^-20 without the adapter and
    e^-40 with it.
    """
    likely = (theirs[0] > FLOOR) & (theirs[1] > 2 * FLOOR)
    a, b = (theirs[1] - theirs[0])[likely], (ours[1] - ours[0])[likely]
    size, our_size = float(np.sqrt(np.mean(a * a))), float(np.sqrt(np.mean(b * b)))
    error = float(np.sqrt(np.mean((a - b) ** 2)) / max(size, 1e-300))
    spread = float(a.std() * b.std())
    correlation = float(((a - a.mean()) * (b - b.mean())).mean() / spread) if spread > 0 else 0.0
    facts: dict[str, Any] = {
        "rms_llamacpp": size,
        "rms_anytune": our_size,
        "correlation": correlation,
        "relative_error": error,
        "limit": CHANGE[limit],
    }
    if max(size, our_size) < NO_CHANGE:
        return {**facts, "ok": False, "remark": "the adapter changes nothing"}
    if limit == ROUNDED_KL and our_size < 2 * noise:
        remark = "the effect is smaller than llama.cpp's rounding of activations: use --exact"
        return {**facts, "ok": True, "inconclusive": True, "remark": remark}
    return {**facts, "ok": error < CHANGE[limit]}


def verify(
    model: Model,
    adapter: Adapter | str | Path | None = None,
    *,
    text: str | None = None,
    positions: int = 12,
    exact: bool = False,
    threads: int | None = None,
) -> dict[str, Any]:
    """Compare `model`, and `adapter` on it, with llama.cpp. Returns facts for people and programs; "ok" is
    the verdict.

    text: what the tokens are taken from (default: a built-in one). positions: how many, spread over the text.
    exact: let llama.cpp load an F32 copy of the model (in a temporary file), because it rounds activations to
    8 bits (16 with BF16 or F16) wherever weights are not F32.
    Raises UserError: llama.cpp is missing or refuses the files, a text too short, no space for the copy.
    """
    types = {info.type.name for info in model.gguf.tensors.values()}
    limit = EXACT_KL if exact or types == {"F32"} else ROUNDED_KL
    ids, places = _tokens(model, TEXT if text is None else text, positions)
    with _files(model, adapter, exact) as (model_file, adapter_file, loaded):
        ours, theirs = [], []
        for ours_adapter, file in ((None, None), (loaded, adapter_file))[: 1 if adapter is None else 2]:
            logits = model.logits(ids, ours_adapter)[places]
            if not np.isfinite(logits).all():
                raise UserError("anytune's own logits are not numbers: the model or adapter file is damaged.")
            rows = llamacpp_logprobs(
                model_file, [ids], vocab=logits.shape[1], adapter=file, positions=[places], threads=threads
            )[0]
            ours.append(log_softmax(logits))
            theirs.append(log_softmax(rows))
    base = compare(theirs[0], ours[0])
    facts: dict[str, Any] = {
        "model": str(model.gguf.path),
        "tensor_types": sorted(types),
        "exact_copy": exact,
        "exact_float": limit == EXACT_KL,
        "tokens": len(ids),
        "positions": places,
        "vocabulary": model.config.vocabulary,
        "base": base.facts(limit),
    }
    checks = [facts["base"]]
    if adapter is not None:
        facts["with_adapter"] = compare(theirs[1], ours[1]).facts(limit)
        facts["trained_on_this_file"] = _same_base(loaded, model)
        facts["change"] = compare_change((theirs[0], theirs[1]), (ours[0], ours[1]), limit, base.noise)
        checks += [facts["with_adapter"], facts["change"]]
    facts["ok"] = all(check["ok"] for check in checks)
    return facts


@contextlib.contextmanager
def on_reference(model: Model) -> Iterator[Model]:
    """The model on the float32 reference engine, for which the limits hold: others may round products to bf16."""
    from anytune.model import load

    if model.engine.name == "numpy":
        yield model
    else:
        with load(model.gguf.path, device="numpy") as reference:
            yield reference


def verify_then_exact(model: Model, adapter: Adapter | str | Path | None = None, **how: Any) -> dict[str, Any]:
    """verify(), and again with exact=True where it fails and llama.cpp's 8-bit rounding may be the reason: then those
    facts, with "rounding_kl", the mean KL of the first. Without space for an F32 copy the first facts.
    """
    facts = verify(model, adapter, **how)
    copy = 4 * model.gguf.n_parameters
    if facts["ok"] or facts["exact_float"] or available_bytes() < 1.2 * copy:
        return facts
    try:
        exact = verify(model, adapter, **{**how, "exact": True})
    except UserError:
        return facts
    return {**exact, "rounding_kl": facts["with_adapter" if adapter is not None else "base"]["kl_mean"]}


def _same_base(adapter: Adapter, model: Model) -> bool | None:
    """Whether the adapter was trained on this very file; None if it does not say."""
    return adapter.base_sha256 == model.gguf.sha256() if adapter.base_sha256 else None


def _tokens(model: Model, text: str, positions: int) -> tuple[list[int], list[int]]:
    """(token ids, at most 512 of them, positions spread evenly over them, the last included)."""
    if positions < 1:
        raise UserError("--positions must be at least 1.")
    ids = model.tokenize(text)[: min(512, model.config.context)]
    if len(ids) < 2:
        raise UserError("The text has fewer than two tokens: give a longer one.")
    places = np.unique(np.linspace(min(3, len(ids) - 1), len(ids) - 1, positions).round().astype(int))
    return ids, [int(p) for p in places]


@contextlib.contextmanager
def _files(model: Model, adapter: Any, exact: bool) -> Iterator[tuple[Path, Path | None, Any]]:
    """The files that llama.cpp loads, temporary ones where needed, and the adapter as an Adapter."""
    from anytune.adapter.adapter import Adapter

    with tempfile.TemporaryDirectory(prefix="anytune-verify-") as name:
        folder = Path(name)
        model_file, adapter_file, loaded = Path(model.gguf.path), None, adapter
        if isinstance(adapter, (str, Path)):
            adapter_file = Path(adapter)
            loaded = Adapter.load(adapter_file, gguf=model.gguf)
        if adapter is not None and (adapter_file is None or adapter_file.is_dir()):
            adapter_file = folder / "adapter.gguf"
            loaded.save(adapter_file)
        if exact:
            model_file = folder / "f32.gguf"
            write_f32(model.gguf, model_file)
        yield model_file, adapter_file, loaded


def write_f32(gguf: Any, path: Path) -> None:
    """Write the model with every tensor as F32, one in memory at a time. Raises UserError for a full disk."""
    from anytune.gguf import write_gguf

    size = 4 * gguf.n_parameters
    check_room(path.parent, size, "the F32 copy", "set TMPDIR to another disk, or omit --exact")
    all_f32 = 0  # general.file_type's number for it
    metadata = {**gguf.metadata, "general.file_type": all_f32}
    tensors = [(name, info.shape, "F32", lambda name=name: gguf.float32(name)) for name, info in gguf.tensors.items()]
    write_gguf(path, metadata, tensors, kinds=gguf.kinds)


def report(facts: dict[str, Any]) -> str:
    """The facts of `verify` for a person."""
    lines = [
        f"{facts['model']}  ({', '.join(facts['tensor_types'])}"
        + ("; llama.cpp loaded an F32 copy)" if facts["exact_copy"] else ")")
    ]
    for key, title in (("base", "without adapter"), ("with_adapter", "with adapter")):
        if key in facts:
            f = facts[key]
            lines.append(
                f"  {title:<16} KL mean {f['kl_mean']:.2e} (limit {f['limit']:.0e}), max {f['kl_max']:.2e}   same "
                f"most likely token at {round(f['top1_agreement'] * f['positions'])} of {f['positions']}   "
                f"{_mark(f)}"
            )
    if "change" in facts:
        f = facts["change"]
        lines.append(
            f"  {'its change':<16} {f['rms_anytune']:.4f} nats here, {f['rms_llamacpp']:.4f} in llama.cpp   "
            f"correlation {f['correlation']:.5f}, relative error {f['relative_error']:.2%}   {_mark(f)}"
        )
        if "remark" in f:
            lines.append(f"  {'':<16} {f['remark']}")
    if facts.get("trained_on_this_file") is False:
        lines.append("  the adapter was trained on another file: it may work less well on this one")
    if "rounding_kl" in facts:
        lines.append(
            f"  On the quantized file the mean KL is {facts['rounding_kl']:.2e}, above {ROUNDED_KL:.0e}: so llama.cpp "
            "was run in float32, where it rounds nothing to 8 bits."
        )
    verdict = "llama.cpp computes the same" if facts["ok"] else "llama.cpp computes something different"
    if not facts["ok"] and not facts.get("exact_float", True):
        verdict += ", or its rounding exceeds the limit: --exact, which compares in float32, shows which"
    if facts.get("change", {}).get("inconclusive"):
        verdict = "llama.cpp computes the same, within its rounding"
    return "\n".join([*lines, f"{'PASS' if facts['ok'] else 'FAIL'}: {verdict}"])


def _mark(facts: dict[str, Any]) -> str:
    return "?" if facts.get("inconclusive") else "ok" if facts["ok"] else "FAIL"
