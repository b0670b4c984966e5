"""cuDNN's attention beside ours, on a card that has it."""

import pytest

from anytune.engine.base import Heads
from tests.support.require import need
from tests.support.triton import DEVICE

need("torch")
import torch  # noqa: E402

from anytune.engine.torch import attention as plain, vendor  # noqa: E402


@pytest.mark.skipif(DEVICE != "cuda", reason="needs a card")
@pytest.mark.parametrize("tokens, heads", [(4096, Heads(4, 2, 128, 0, 0.1)), (4113, Heads(3, 3, 64, 0, 0.125))])
def test_it_gives_what_ours_gives(tokens, heads):
    torch.manual_seed(0)
    wide = (heads.n_heads + 2 * heads.n_kv_heads) * heads.head_dim
    x = torch.randn(tokens, wide + 8, device="cuda").bfloat16()[:, :wide]
    q, k, v = x.split(
        [heads.n_heads * heads.head_dim, heads.n_kv_heads * heads.head_dim, heads.n_kv_heads * heads.head_dim], 1
    )
    if not vendor.suits(q, heads, True):
        pytest.skip("this card's cuDNN is not taken")
    made, want = (
        torch.full((tokens, heads.n_heads * heads.head_dim + 8), float("nan"), device="cuda").bfloat16()[:, :-8]
        for _ in range(2)
    )
    lse = vendor.attention(q, k, v, heads, made)
    first, end = (torch.full((tokens,), n, dtype=torch.int32, device="cuda") for n in (0, tokens))
    from anytune.engine.torch.kernels.attention import attention

    other = attention(q, k, v, first, end, None, heads, want)
    assert (made.float() - want.float()).norm() <= 1e-2 * want.float().norm()
    assert (lse - other).abs().max() < 1e-2
    again = torch.empty_like(made)
    vendor.attention(q, k, v, heads, again)
    assert torch.equal(again, made)


def test_it_is_for_one_long_example_without_a_window_on_a_card():
    q, heads = torch.zeros(8192, 256), Heads(2, 2, 128, 0, 0.1)
    assert not vendor.suits(q, heads, True) and plain.attention is not vendor.attention
