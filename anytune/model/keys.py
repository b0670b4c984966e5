"""Every key and tensor of a GGUF model is used, known to change nothing, or refused by name.

What counts is what llama.cpp computes from the file, because that is what serves it: a key that it does not read for an
architecture means nothing there (its own tools write many of them, with whatever their defaults are), and a key that
neither it nor anytune knows may mean anything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from anytune.errors import UserError

USED = frozenset(
    (  # of every architecture; others are named in its row of the table of architectures
        "context_length",
        "embedding_length",
        "block_count",
        "feed_forward_length",
        "attention.head_count",
        "attention.head_count_kv",
        "attention.key_length",
        "attention.value_length",
        "attention.layer_norm_rms_epsilon",
        "rope.dimension_count",
        "rope.freq_base",
        "rope.scale_linear",
        "rope.scaling.type",
        "rope.scaling.factor",
        "rope.scaling.attn_factor",
        "rope.scaling.original_context_length",
    )
)
NOTHING = "0", lambda value, _: value == 0
EXPERTS = frozenset(
    "expert_count expert_used_count expert_feed_forward_length expert_shared_feed_forward_length expert_shared_count "
    "expert_weights_scale expert_weights_norm expert_gating_func leading_dense_block_count".split()
)
# key -> (what is computed here, whether a value is that)
CHECKED: dict[str, tuple[str, Callable[[Any, Any], bool]]] = {
    **{key: NOTHING for key in ("expert_count", "expert_used_count", "nextn_predict_layers")},
    # groups of experts, of which llama.cpp chooses some first where there are several
    **{key: ("1", lambda value, _: value in (0, 1)) for key in ("expert_group_count", "expert_group_used_count")},
    "attention.causal": ("true", lambda value, _: value is True),
    "attention.key_length_swa": ("what the other layers have", lambda value, c: value == c.head_size),
    "attention.value_length_swa": ("what the other layers have", lambda value, c: value == c.head_size),
    "rope.dimension_count_swa": ("what the other layers have", lambda value, c: value == c.rope_size),
}
UNREAD = {  # names that llama.cpp knows, for other architectures or for other things than logits
    "": "vocab_size embedding_length_out embedding_length_per_layer_input features_length "
    "leading_dense_block_count expert_feed_forward_length expert_shared_feed_forward_length "
    "expert_chunk_feed_forward_length swiglu_clamp_exp swiglu_clamp_shexp use_parallel_residual "
    "tensor_data_layout expert_shared_count expert_weights_scale expert_weights_norm expert_gating_func "
    "expert_group_scale experts_per_group moe_every_n_layers moe_latent_size n_deepstack_layers "
    "deepstack_mapping hidden_activation pooling_type logit_scale decoder_start_token_id decoder_block_count "
    "attn_logit_softcapping router_logit_softcapping final_logit_softcapping swin_norm rescale_every_n_layers "
    "time_mix_extra_dim time_decay_extra_dim residual_scale embedding_scale token_shift_count "
    "interleave_moe_layer_step full_attention_interval target_layers target_hidden_size norm_before_residual "
    "dense_2_feat_in dense_2_feat_out dense_3_feat_in dense_3_feat_out",
    "attention": "max_alibi_bias clamp_kqv layer_norm_epsilon group_norm_epsilon group_norm_groups q_lora_rank "
    "kv_lora_rank decay_lora_rank iclr_lora_rank value_residual_mix_lora_rank gate_lora_rank "
    "relative_buckets_count sliding_window sliding_window_pattern scale output_scale value_scale "
    "temperature_length temperature_scale key_length_mla value_length_mla shared_kv_layers recurrent_layers",
    "attention.indexer": "head_count key_length top_k",
    "rope": "dimension_sections freq_base_swa",
    "rope.scaling": "alpha finetuned yarn_log_multiplier yarn_ext_factor yarn_attn_factor "
    "yarn_beta_fast yarn_beta_slow",
    "ssm": "conv_kernel inner_size state_size time_step_rank group_count dt_b_c_rms",
    "kda": "head_dim",
    "wkv": "head_size",
    "posnet": "embedding_length block_count",
    "convnext": "embedding_length block_count",
    "classifier": "output_labels",
    "shortconv": "l_cache",
}
_UNREAD = frozenset(f"{part}.{name}" if part else name for part, names in UNREAD.items() for name in names.split())
NEOX = (("attn_q_norm", "attn_k_norm"), ("attn_k_norm", "attn_q_norm"))
OTHER_PARTS = ("vision.", "mm.", "audio.")  # of a model that also sees or hears: its text is computed without them


def check_keys(gguf, config) -> None:
    """Raise UserError for a key of the architecture that would make llama.cpp compute something else, or that is not
    known."""
    start = f"{config.architecture}."
    for key, value in gguf.metadata.items():
        name = key.removeprefix(start)
        if name == key or name in USED or name in config.arch.keys or name.startswith(OTHER_PARTS):
            continue
        if config.arch.experts and name in EXPERTS:
            continue
        if name in CHECKED or name in config.arch.zero:
            wanted, good = CHECKED.get(name, NOTHING)
            if not isinstance(value, list | np.ndarray) and good(value, config):
                continue
            raise UserError(
                f"{gguf.path.name}: {key} is {value!r:.40}, and anytune computes with {wanted} only: "
                "llama.cpp would compute something else from this file."
            )
        if name not in _UNREAD and not _off(value):
            raise UserError(
                f"{gguf.path.name}: {key} = {value!r:.40} is unknown, so its effect cannot be computed: use a file "
                "without it."
            )


def check_tensors(
    gguf, wanted: Mapping[str, tuple[int, ...]], optional: Mapping[str, tuple[int, ...]], ignored: Callable[[str], bool]
) -> None:
    """Raise UserError unless the tensors of `wanted` are there, and no others but those of `optional`, in their
    shapes, and those that are ignored."""
    where, tensors = gguf.path.name, gguf.tensors
    for name in tensors:
        other = next((name.replace(a, b) for a, b in NEOX if a in name and name.replace(a, b) not in tensors), None)
        if other is not None and (other in wanted or name not in wanted):
            raise UserError(
                f"{where} has the tensor {name} and lacks the tensor {other}, the other half of the "
                f"pair: the "
                "file is incomplete."
            )
    for name in wanted:
        if name not in tensors:
            raise UserError(
                f"{where} lacks the tensor {name}: the file is incomplete, or of a layout that anytune cannot train"
            )
    for name, tensor in tensors.items():
        if ignored(name):
            continue
        shape = wanted.get(name) or optional.get(name)
        if shape is None:
            why = ", which llama.cpp multiplies a product by" if name.endswith("scale") else ""
            raise UserError(
                f"{where} has the tensor {name}{why}: anytune does not compute with it, so it would train a "
                "different model than llama.cpp serves"
            )
        if tuple(tensor.shape) != shape:
            raise UserError(
                f"{where}: tensor {name} has shape {tuple(tensor.shape)}, but the metadata say {shape}: the file is "
                "damaged"
            )


def _off(value: Any) -> bool:
    return isinstance(value, bool | int | float | str) and not value
