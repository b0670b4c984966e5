"""How the ranks of an adapter are spread over a layer's products, for as many parameters as one rank everywhere.

A change that is cut loses something. What attention's output and the feed-forward's lose goes into the residual stream,
where only later layers can correct it, while those of queries, keys, gates and ups are corrected in the layer by the
product behind them. So the former get more ranks (figures: docs/LOG.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from anytune.model import Model

SHARES = {  # of the rank that all would have
    "attn_q": 0.5,
    "attn_k": 0.5,
    "attn_v": 1.0,
    "attn_output": 2.0,
    "ssm_out": 2.0,
    "ffn_gate": 0.625,
    "ffn_up": 0.625,
    "ffn_down": 1.625,
}
SHARES |= {f"{kind}_shexp": SHARES[kind] for kind in ("ffn_gate", "ffn_up", "ffn_down")}  # experts that all tokens use


def costs(model: Model) -> dict[str, int]:
    """{kind of product: parameters of one rank, over all layers}."""
    found: dict[str, int] = {}
    for name in (name for names in model.config.products() for name in names):
        found[kind_of(name)] = found.get(kind_of(name), 0) + sum(model.gguf.tensors[name].shape)
    return found


def spread(cost: Mapping[str, int], rank: int) -> dict[str, int]:
    """{kind: rank}, at least 1, for at most `rank` times the parameters of one rank everywhere."""
    factor = rank * sum(cost.values()) / sum(SHARES.get(kind, 1.0) * cost[kind] for kind in cost)
    ranks, left = dict.fromkeys(cost, 1), (rank - 1) * sum(cost.values())
    while left > 0:
        lacking = {kind: factor * SHARES.get(kind, 1.0) - ranks[kind] for kind in cost if cost[kind] <= left}
        kind = max(lacking, key=lacking.__getitem__, default=None)
        if kind is None or lacking[kind] <= 0:
            break
        ranks[kind] += 1
        left -= cost[kind]
    return ranks


def kind_of(tensor: str) -> str:
    """attn_q of blk.3.attn_q.weight."""
    return tensor.split(".")[2]
