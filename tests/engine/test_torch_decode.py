"""Triton's kernel of new tokens' queries and keys on their way to a cache."""

import pytest

from tests.support.torch_kernels import DEVICE, empty, kept, seed, torch, view
from tests.support.triton import triton_module

triton_module()
from anytune.engine.torch.kernels import qk_norm_rope, qk_norm_rope_store  # noqa: E402

DTYPES = [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("norms", [True, False])
def test_keys_and_values_go_to_their_places(norms, dtype):
    tokens, heads, n_kv_heads, size, context = 3, 4, 2, 12, 7
    cos, sin = view(9, 6, spare=0), view(9, 6, spare=0)
    positions, slots = (torch.tensor(z, dtype=torch.int32, device=DEVICE) for z in ([6, 0, 3], [2, 0, 3]))
    gains = (view(1, size)[0], view(1, size)[0]) if norms else (None, None)
    q, k, v = (view(tokens, n * size, dtype) for n in (heads, n_kv_heads, n_kv_heads))
    keys, values = (torch.full((4, context, n_kv_heads * size), 7.0, dtype=dtype, device=DEVICE) for _ in range(2))
    out, wants = empty(*q.shape, dtype), (empty(*q.shape, dtype), empty(*k.shape, dtype))
    given = (*gains, 1e-5, cos, sin, positions, heads, n_kv_heads, True)
    qk_norm_rope_store.qk_norm_rope_store(q, k, v, *given, out, keys, values, slots)
    qk_norm_rope.qk_norm_rope(q, k, *given, *wants)
    assert torch.equal(out, wants[0])
    kept(out)
    for cache, want in ((keys, wants[1]), (values, v)):
        assert torch.equal(cache[slots.long(), positions.long()], want)
        cache[slots.long(), positions.long()] = 7.0
        assert (cache == 7).all()
