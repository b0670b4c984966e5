"""Each export loaded in the program that it is for, and its distributions compared with what was trained."""

from __future__ import annotations

import importlib.util
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anytune.adapter.adapter import Adapter
from anytune.errors import UserError
from anytune.extras import install
from anytune.files import check_room
from anytune.llamacpp.verify import EXACT_KL, ROUNDED_KL, TEXT, compare, log_softmax, verify
from anytune.memory import available_bytes
from anytune.units import bytes_text

if TYPE_CHECKING:
    from anytune.model import Model

TOKENS = 64  # of the text that transformers runs on
WORDS = "Grüße aus 東京! 3.14 of 1000\n\n\tx = {'a': [1, 2]}  # don't\n" + TEXT[:200]  # for tokenizers


def skipped(peer: str, why: str) -> dict[str, Any]:
    """Facts of a check that could not be made. ok is None."""
    return {"peer": peer, "ok": None, "why": why}


def in_llamacpp(
    model: Model, adapter: Adapter | str | Path | None = None, *, small: bool = False, threads: int | None = None
) -> dict[str, Any]:
    """Load the model's file (and the adapter) in llama.cpp and compare it with what anytune computes.

    small: an adapter that may change next to nothing, as one that holds rounding errors does.
    """
    from anytune.llamacpp.judge import available

    if not available():
        return skipped("llama.cpp", f"it is not installed: {install('verify')}")
    facts = verify(model, adapter, positions=8, threads=threads)
    rounded = None
    if not _all_ok(facts, adapter, small) and not facts["exact_float"]:
        # llama.cpp rounds activations to 8 bits beside quantized weights, which some models feel by more than the
        # limit: without that rounding, in float32, the limit is a thousand times lower
        try:
            exact = verify(model, adapter, positions=8, exact=True, threads=threads)
            rounded, facts = facts["with_adapter" if adapter is not None else "base"]["kl_mean"], exact
        except UserError as error:
            return skipped("llama.cpp", f"its rounding of activations hides the answer, and {error}")
    told = facts["with_adapter" if adapter is not None else "base"]
    return {
        "peer": "llama.cpp" if rounded is None else "llama.cpp in float32",
        "rounding": "with its 8-bit rounding of activations, which the file does not cause",
        "rounding_kl": rounded,
        "ok": _all_ok(facts, adapter, small),
        "kl_mean": told["kl_mean"],
        "kl_max": told["kl_max"],
        "limit": told["limit"],
        "same_top": told["top1_agreement"],
    }


def _all_ok(facts: dict[str, Any], adapter: Any, small: bool) -> bool:
    if not small or adapter is None:
        return facts["ok"]
    return all(facts[key]["ok"] for key in ("base", "with_adapter") if key in facts)


def transformers_missing(model: Model, *packages: str) -> str | None:
    """Why transformers cannot be asked, or None."""
    for package in ("torch", "transformers", *packages):
        if importlib.util.find_spec(package) is None:
            return f"{package} is not installed: {install('hf')}"
    need = 4 * model.gguf.n_parameters
    if (free := available_bytes()) < 1.2 * need:
        return f"{bytes_text(need)} of memory are needed and {bytes_text(free)} are free"
    return None


def _room_missing(model: Model) -> str | None:
    """Why there cannot be a float32 copy in the folder for temporary files, or None."""
    what, instead = "a float32 copy to compare with", "set TMPDIR to another place"
    try:
        check_room(tempfile.gettempdir(), 4 * model.gguf.n_parameters, what, instead)
    except UserError as error:
        return str(error)
    return None


def in_transformers(
    folder: Path, model: Model, adapter: Adapter | None, exact: bool, wrap: Callable[[Any], Any] = lambda loaded: loaded
) -> dict[str, Any]:
    """Load a folder in transformers, in float32, and compare logits and token ids with the model and adapter.

    exact: the folder holds float32. wrap: what is done to the loaded model before it is asked.
    """
    import torch
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the library's own future
        loaded = wrap(transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval())
    ids = model.tokenize(TEXT)[: min(TOKENS, model.config.context)]
    with torch.no_grad():
        theirs = log_softmax(loaded(input_ids=torch.tensor([ids])).logits[0].float().numpy())
    found = compare(theirs, log_softmax(model.logits(ids, adapter)))
    facts = {"peer": "transformers", **found.facts(EXACT_KL if exact else ROUNDED_KL)}
    facts["same_top"] = facts.pop("top1_agreement")
    if (folder / "tokenizer.json").exists():
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        facts["tokens_alike"] = tokenizer(WORDS)["input_ids"] == model.tokenizer.encode(WORDS, special=True)
        facts["ok"] = facts["ok"] and facts["tokens_alike"]
    return facts


def in_folder(folder: Path, model: Model, adapter: Adapter | None, dtype: str) -> dict[str, Any]:
    """in_transformers(); above the limit in 16 bits a float32 copy is judged instead, and the folder against the copy.

    Rounding sends a token to another expert where two are nearly equal. That is no error of the file.
    """
    facts = in_transformers(folder, model, adapter, dtype == "f32")
    if facts["ok"] or dtype == "f32" or not facts.get("tokens_alike", True):
        return facts
    if why := _room_missing(model):
        return skipped("transformers", f"rounded to {dtype} the KL is {facts['kl_mean']:.1e}, and {why}")
    from anytune.export.huggingface import save

    with tempfile.TemporaryDirectory(prefix="anytune-float32-") as name:
        copy = Path(name) / "copy"
        save(model.gguf, adapter, copy, dtype="f32", tokenizer=False)
        exact = in_transformers(copy, model, adapter, True)
        exact["ok"] = exact["ok"] and _is_rounded(folder, copy, dtype)
    return {
        **exact,
        "peer": "transformers in float32",
        "rounding": f"rounded to {dtype}",
        "rounding_kl": facts["kl_mean"],
    }


def _is_rounded(folder: Path, copy: Path, dtype: str) -> bool:
    """Whether the folder has the copy's tensors, each rounded to dtype or as it is."""
    import torch
    from safetensors import safe_open

    def tensors(where: Path) -> dict[str, Any]:
        files = [safe_open(path, "pt") for path in sorted(where.glob("*.safetensors"))]
        return {name: file for file in files for name in file.keys()}

    ours, theirs = tensors(folder), tensors(copy)
    to = {"bf16": torch.bfloat16, "f16": torch.float16}[dtype]
    return ours.keys() == theirs.keys() and all(
        torch.equal(found.float(), (exact if found.dtype == exact.dtype else exact.to(to)).float())
        for name in ours
        for found, exact in [(ours[name].get_tensor(name), theirs[name].get_tensor(name))]
    )


def in_peft(folder: Path, model: Model, adapter: Adapter) -> dict[str, Any]:
    """Load a peft folder on the base in transformers, of which a float32 copy is written to a temporary folder."""
    from anytune.export.huggingface import save

    if why := transformers_missing(model, "peft") or _room_missing(model):
        return skipped("transformers + peft", why)
    import peft

    with tempfile.TemporaryDirectory(prefix="anytune-peft-") as name:
        base = Path(name) / "base"
        save(model.gguf, None, base, dtype="f32", tokenizer=False)
        facts = in_transformers(
            base, model, adapter, True, lambda loaded: peft.PeftModel.from_pretrained(loaded, folder).eval()
        )
    return {**facts, "peer": "transformers + peft"}


def line(facts: dict[str, Any]) -> str:
    """One check for a person."""
    if facts["ok"] is None:
        return f"not verified in {facts['peer']}: {facts['why']}"
    alike = "" if facts.get("tokens_alike", True) else ", other token ids"
    if facts.get("rounding_kl") is not None:
        alike += f"; {facts['rounding']}, KL {facts['rounding_kl']:.1e}"
    verdict = ("PASS", "the same") if facts["ok"] else ("FAIL", "something else")
    return (
        f"{verdict[0]}: {facts['peer']} computes {verdict[1]}  (KL mean {facts['kl_mean']:.1e}, limit "
        f"{facts['limit']:.0e}, same most likely token {facts['same_top']:.0%}{alike})"
    )
