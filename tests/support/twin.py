"""A GGUF file as a transformers model: the same dequantized weights, read with the `gguf` package alone.

Nothing of anytune takes part, so a wrong reading there shows as a difference. float32 throughout.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.support import twin_experts
from tests.support.require import need
from tests.support.twin_kinds import KINDS, kind_of
from tests.support.twin_names import ENDS, WHOLE


def read(path: Path) -> tuple[dict, dict[str, np.ndarray]]:
    """(metadata, {tensor: float32 array in NumPy order}) of a GGUF file."""
    gguf = need("gguf")
    reader = gguf.GGUFReader(path)
    values = {key: f.contents() for key, f in reader.fields.items() if not key.startswith(("GGUF.", "tokenizer."))}
    weights = {t.name: np.array(gguf.quants.dequantize(t.data, t.tensor_type), np.float32) for t in reader.tensors}
    return values, weights


def unpermute(w: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a llama GGUF's q or k (or of its LoRA B), each head's rotary pairs adjacent -> neox apart."""
    half = w.shape[0] // heads // 2
    return np.ascontiguousarray(w.reshape(heads, half, 2, -1).swapaxes(1, 2).reshape(w.shape))


def module_name(tensor: str, arch: str) -> str:
    """GGUF tensor name -> transformers parameter name (without the outermost "model." of a peft wrapper)."""
    stem, _, kind = tensor.rpartition(".")
    if not tensor.startswith("blk."):
        return f"{ENDS[stem]}.{kind}"
    layer, name = tensor.split(".", 2)[1:]
    name = name.removesuffix(".weight").removesuffix(".bias")
    whole = "feed_forward.expert_bias" if (arch, name) == ("lfm2moe", "exp_probs_b") else WHOLE.get(name)
    return f"model.layers.{layer}." + (whole or f"{KINDS[arch].names[name]}.{kind}")


def grouped(w: np.ndarray, keys: int, values: int, size: int, axis: int = 0) -> np.ndarray:
    """Value heads of a qwen35 GGUF (v0 of every key head, v1 of every key head, …) -> those of a key head together."""
    w = np.moveaxis(w, axis, 0)
    first, heads = w[: len(w) - values * size], w[len(w) - values * size :]
    heads = heads.reshape(values // keys, keys, size, *w.shape[1:]).swapaxes(0, 1)
    return np.ascontiguousarray(np.moveaxis(np.concatenate([first, heads.reshape(-1, *w.shape[1:])]), 0, axis))


def theirs(tensor: str, w: np.ndarray, values: dict, lora: str = "") -> np.ndarray:
    """A GGUF's tensor (or with lora "a" or "b" that side of its pair) in the order of rows that transformers has."""
    arch = values["general.architecture"]
    if heads := heads_of(tensor, values):
        return w if lora == "a" else unpermute(w, heads)
    part = tensor.split(".")[2] if tensor.startswith("blk.") else ""
    if arch in ("qwen35", "qwen35moe") and (
        part.startswith("ssm_") and part != "ssm_norm" or part in ("attn_qkv", "attn_gate")
    ):
        keys, count, size = (values[f"{arch}.ssm.{k}"] for k in ("group_count", "time_step_rank", "state_size"))
        columns = part == "ssm_out"
        if lora and columns != (lora == "a"):
            return w
        each = 1 if part in ("ssm_a", "ssm_dt", "ssm_alpha", "ssm_beta") else size
        w = grouped(w, keys, count, each, 1 if columns else 0)
    return w


def heads_of(tensor: str, values: dict) -> int:
    """Number of heads whose rows a llama converter permuted in this tensor; 0 for none."""
    arch = values["general.architecture"]
    if not KINDS[arch].permuted or ".attn_" not in tensor:
        return 0
    return {"attn_q": values[f"{arch}.attention.head_count"], "attn_k": values[f"{arch}.attention.head_count_kv"]}.get(
        tensor.split(".")[2], 0
    )


def config(values: dict, weights: dict[str, np.ndarray], attention: str = "eager"):
    """The transformers configuration that a GGUF's metadata describes."""
    transformers = need("transformers")
    arch = values["general.architecture"]

    def get(key: str, default=None):
        return values.get(f"{arch}.{key}", default)

    vocab, width = weights["token_embd.weight"].shape
    heads, base = get("attention.head_count"), get("rope.freq_base")
    head_dim = get("attention.key_length", width // heads)
    rope = {"rope_type": "default", "rope_theta": base}
    if get("rope.scaling.type") == "linear":
        rope |= {"rope_type": "linear", "factor": get("rope.scaling.factor")}
    if get("rope.scaling.type") == "yarn":
        rope |= {
            "rope_type": "yarn",
            "factor": get("rope.scaling.factor"),
            "original_max_position_embeddings": get("rope.scaling.original_context_length"),
        }
    settings = dict(
        vocab_size=vocab,
        hidden_size=width,
        intermediate_size=get("feed_forward_length"),
        num_hidden_layers=get("block_count"),
        num_attention_heads=heads,
        num_key_value_heads=get("attention.head_count_kv"),
        head_dim=head_dim,
        rms_norm_eps=get("attention.layer_norm_rms_epsilon"),
        max_position_embeddings=get("context_length"),
        tie_word_embeddings="output.weight" not in weights,
        rope_parameters=rope,
        attn_implementation=attention,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    kind = kind_of(values)
    return getattr(transformers, kind.config or f"{kind.name}Config")(
        **settings | kind.settings(get, settings, weights)
    )


def whole_latents(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The weights with attn_k_b and attn_v_b, of each head, as the one matrix that transformers has."""
    found = {name: w for name, w in weights.items() if not name.endswith(("attn_k_b.weight", "attn_v_b.weight"))}
    for name, k in weights.items():
        if name.endswith("attn_k_b.weight"):
            both = [k.swapaxes(1, 2), weights[name.replace("_k_b", "_v_b")]]
            found[name.replace("_k_b", "_kv_b")] = np.concatenate(both, 1).reshape(-1, k.shape[1])
    return found


def transformers_model(path: Path, attention: str = "eager"):
    """The file as a causal model of `transformers` in float32, in evaluation mode."""
    torch, transformers = need("torch"), need("transformers")
    values, weights = read(path)
    arch = values["general.architecture"]
    cfg = config(values, weights, attention)
    factors = None if arch == "gemma4" else weights.pop("rope_freqs.weight", None)
    weights = {name: w for name, w in weights.items() if not name.startswith("rope_")}
    weights = whole_latents(weights)
    state = twin_experts.state(arch, weights)
    for name, w in weights.items():
        if name.endswith("_inp_shexp.weight"):
            w = w[None]
        if twin_experts.is_expert(name):
            continue
        w = theirs(name, w, values)
        if "norm" in name and (arch in ("gemma2", "gemma3") or arch in ("qwen35", "qwen35moe") and "ssm" not in name):
            w = w - 1  # the file holds 1 + weight
        if name.endswith("ssm_a"):
            w = np.log(-w)
        if "ssm_conv1d" in name or "shortconv.conv" in name:
            w = w[:, None]
        state[module_name(name, arch)] = torch.from_numpy(w)
    if cfg.tie_word_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model = getattr(transformers, kind_of(values).name + "ForCausalLM")(cfg)
    model.load_state_dict(state, strict=True)
    if factors is not None:  # the file says what the published scheme computes, so it is taken as it is
        model.model.rotary_emb.inv_freq /= torch.from_numpy(factors)
    return model.float().eval()


def logits(model, ids: list[int]) -> np.ndarray:
    """float32 [n, vocab] of a transformers (or peft) model on one sequence."""
    torch = need("torch")
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0].float().numpy()
