"""llama.cpp as the judge: its next-token distributions, from a child process.

A child, so that an abort in there, or its memory, is not ours. `python -m anytune.llamacpp.judge` is the child: it
reads one job as JSON from stdin and writes one .npy file. Token ids go in, not text: tokenizers cannot differ here.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anytune.errors import UserError

if TYPE_CHECKING:
    import numpy as np

NEVER = -1e4  # the log-probability given to a token whose probability llama.cpp rounds to zero
_RESULT = "result.npy"


def available() -> bool:
    """Whether llama.cpp can be asked (the package xllamacpp is installed)."""
    return importlib.util.find_spec("xllamacpp") is not None


def need_llamacpp() -> None:
    """Raise UserError where llama.cpp is not installed."""
    if not available():
        raise UserError("llama.cpp is not installed: install it with `pip install xllamacpp`.")


def llamacpp_logprobs(
    model: str | os.PathLike,
    sequences: Sequence[Sequence[int]],
    *,
    vocab: int,
    adapter: str | os.PathLike | None = None,
    positions: Sequence[Sequence[int]] | None = None,
    scale: float = 1.0,
    threads: int | None = None,
    timeout: float = 1800.0,
) -> list[np.ndarray]:
    """llama.cpp's log-probabilities of every token that could follow, float32 [positions, vocab] a sequence.

    sequences: token ids, fed as they are (BOS is not added). positions: for each sequence the indexes p whose
    distribution after ids[:p + 1] is wanted (default: all). adapter: a LoRA GGUF, applied with `scale`.
    Keys and values are kept in float32 and attention is the plain one, so that what differs from exact
    arithmetic is what llama.cpp does with the weights' type.

    Raises UserError where xllamacpp is missing, or llama.cpp refuses the files; TimeoutError after `timeout` s.
    """
    import numpy as np

    need_llamacpp()
    wanted = [list(range(len(ids))) for ids in sequences] if positions is None else [list(p) for p in positions]
    for ids, places in zip(sequences, wanted, strict=True):
        if any(not 0 <= p < len(ids) for p in places):
            raise ValueError(f"positions {places} are not all within the {len(ids)} tokens")
    job = {
        "model": os.fspath(Path(model).resolve()),
        "adapter": adapter and os.fspath(Path(adapter).resolve()),
        "scale": float(scale),
        "vocab": int(vocab),
        "threads": threads or os.cpu_count() or 1,
        "context": max(map(len, sequences), default=1) + 8,
        "sequences": [[int(token) for token in ids] for ids in sequences],
        "positions": wanted,
    }
    with tempfile.TemporaryDirectory(prefix="anytune-llamacpp-") as folder:
        _run_child(job, Path(folder), timeout)
        rows = np.load(Path(folder) / _RESULT, allow_pickle=False)
    edges = np.cumsum([0, *map(len, wanted)])
    return [rows[lo:hi] for lo, hi in zip(edges[:-1], edges[1:], strict=True)]


def _run_child(job: dict[str, Any], folder: Path, timeout: float) -> None:
    # Threads that spin while they wait would fight with ours and with their neighbours.
    environment = {
        "OMP_WAIT_POLICY": "PASSIVE",
        **os.environ,
        "PYTHONPATH": os.pathsep.join(
            [str(Path(__file__).resolve().parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
        ),
    }
    log = folder / "log.txt"
    with open(log, "wb") as output:
        try:
            done = subprocess.run(
                [sys.executable, "-m", "anytune.llamacpp.judge"],
                input=json.dumps(job).encode(),
                stdout=output,
                stderr=output,
                cwd=folder,
                env=environment,
                timeout=timeout,
            )
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"llama.cpp did not answer within {timeout:.0f} s") from None
    if done.returncode == 0 and (folder / _RESULT).exists():
        return
    said = _reason(log.read_text(encoding="utf-8", errors="replace"))
    files = job["model"] + (f" with the adapter {job['adapter']}" if job["adapter"] else "")
    ended = f"signal {-done.returncode}" if done.returncode < 0 else f"code {done.returncode}"
    raise UserError(f"llama.cpp could not use {files} ({ended}): {said}")


def _reason(log: str) -> str:
    """The line of llama.cpp's output that tells most: the first that speaks of an error, else the last."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    telling = [line for line in lines if "error" in line.lower() or "failed" in line.lower() or "abort" in line.lower()]
    return (telling or lines or ["no output"])[0][:300]


def child(job: dict[str, Any]) -> None:
    """Answer one job (see llamacpp_logprobs) and write result.npy into the current folder."""
    import numpy as np

    from anytune.llamacpp import library

    try:
        rows = library.logprobs(job)
    except library.Unknown:  # another build: its public interface, a request a position
        rows = server_logprobs(job)
    np.save(_RESULT, rows)
    sys.stdout.flush()
    os._exit(0)  # the result is written: a crash while the library shuts down must not spoil it


def server_logprobs(job: dict[str, Any]) -> np.ndarray:
    """float32 [positions, vocab] through llama.cpp's server, in this process."""
    import numpy as np
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = job["model"]
    if job["adapter"]:
        adapter = xllamacpp.CommonAdapterLoraInfo()
        adapter.path, adapter.scale = job["adapter"], job["scale"]
        params.lora_adapters = [adapter]
    float32, attention_off = 0, 0  # ggml's type number; the plain attention is the exact one
    options = {
        "n_ctx": job["context"],
        "n_parallel": 1,
        "n_gpu_layers": 0,
        "warmup": False,
        "fit_params": False,
        "cache_type_k": float32,
        "cache_type_v": float32,
        "flash_attn_type": attention_off,
        "swa_full": True,
        "no_extra_bufts": True,
        "cache_ram_mib": 0,
        "verbosity": 2,
    }
    for name, value in options.items():
        if hasattr(params, name):  # options come and go between releases; none changes what is computed by much
            setattr(params, name, _as_kind(xllamacpp, name, value))
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = job["threads"]
    server = xllamacpp.Server(params)
    prompts = [ids[: p + 1] for ids, places in zip(job["sequences"], job["positions"], strict=True) for p in places]
    rows = np.full((len(prompts), job["vocab"]), NEVER, np.float32)
    forced = -1
    for row, prompt in zip(rows, prompts, strict=True):
        forced, top = _ask(server, prompt, job["vocab"], forced)
        for entry in top:
            value = entry["logprob"]
            if value is not None and math.isfinite(value):
                row[entry["id"]] = max(value, NEVER)
    return rows


def _ask(server: Any, prompt: list[int], vocab: int, forced: int) -> tuple[int, list[dict[str, Any]]]:
    """(token that was forced, [{id, logprob}] of all tokens after `prompt`).

    The server stays silent where the token that it generates ends within a character, so from then on a token
    that it does print is forced by a bias (forced >= 0); the probabilities that it lists are those before the bias.
    """
    while forced < vocab:
        bias = {"logit_bias": [[forced, 1000.0]]} if forced >= 0 else {}
        answer = server.handle_completions(
            {
                "prompt": prompt,
                "n_predict": 1,
                "temperature": 0.0,
                "cache_prompt": True,
                "n_probs": vocab,
                "post_sampling_probs": False,
                **bias,
            }
        )
        if "error" in answer:
            raise SystemExit(f"error: {answer['error'].get('message', answer['error'])}")
        if top := _top(answer):
            return forced, top
        forced += 1
    raise SystemExit("error: the answers have no probabilities")


def _as_kind(xllamacpp: Any, name: str, value: int) -> Any:
    """Some options are enumerations in some releases: take the kind that the option has now."""
    if name == "flash_attn_type":
        kind = getattr(xllamacpp, "llama_flash_attn_type", None)
        return getattr(kind, "LLAMA_FLASH_ATTN_TYPE_DISABLED", value)
    if name.startswith("cache_type"):
        return getattr(getattr(xllamacpp, "ggml_type", None), "GGML_TYPE_F32", value)
    return value


def _top(answer: dict[str, Any]) -> list[dict[str, Any]]:
    """The list of {id, logprob} of the generated token, from either form of answer; empty where there is none."""
    if "completion_probabilities" in answer:
        found = answer["completion_probabilities"]
    else:
        found = (answer["choices"][0].get("logprobs") or {}).get("content")
    return found[0]["top_logprobs"] if found else []


if __name__ == "__main__":
    child(json.load(sys.stdin))
