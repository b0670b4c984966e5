"""Attention's kernels on one GPU: other shapes of tile, and cuDNN's, at 8,192 tokens of one example and of eight.

    python bench/attention_gpu.py               # under a minute and a half on an H200

16 heads on 8 key heads of 128, bf16: medians of triton.testing.do_bench in ms. Of cuDNN's gradients it says which are
the same bits when they are made twice.
"""

from __future__ import annotations


import common

TOKENS, HEADS, KEYS, SIZE = 8192, 16, 8, 128
FORWARD = (
    (64, 64, 4, 3),
    (64, 64, 4, 2),
    (128, 64, 8, 3),
    (128, 64, 8, 2),
    (128, 128, 8, 2),
    (64, 128, 4, 2),
    (64, 128, 4, 3),
    (128, 64, 4, 2),
    (128, 32, 4, 3),
    (64, 32, 4, 4),
)
QUERIES = (
    (128, 64, 8, 3),
    (128, 64, 8, 2),
    (128, 128, 8, 2),
    (64, 64, 4, 2),
    (64, 64, 4, 3),
    (128, 32, 8, 3),
    (128, 32, 4, 3),
    (64, 128, 4, 2),
)
KEYED = (
    (64, 64, 4, 2),
    (64, 64, 4, 3),
    (64, 128, 8, 2),
    (64, 128, 8, 3),
    (128, 64, 8, 2),
    (32, 128, 8, 3),
    (128, 128, 8, 1),
    (32, 64, 4, 3),
    (64, 64, 8, 2),
)


def milliseconds(work) -> float | str:
    from triton.testing import do_bench

    try:
        return round(do_bench(work, warmup=15, rep=60, return_mode="median"), 4)
    except Exception as error:  # a tile that does not fit the device is a finding
        return f"{type(error).__name__}: {error}"[:80]


def ours(tokens: int, examples: int) -> dict:
    import torch

    from anytune.engine.base import Heads
    from anytune.engine.torch.kernels import attention, attention_backward

    tile, heads = attention.Config, Heads(HEADS, KEYS, SIZE, 0, SIZE**-0.5)
    q, k, v = (
        torch.randn(tokens, (HEADS + 2 * KEYS) * SIZE, device="cuda")
        .bfloat16()
        .split([HEADS * SIZE, KEYS * SIZE, KEYS * SIZE], 1)
    )
    length = tokens // examples
    first = (torch.arange(tokens, device="cuda") // length * length).int()
    end = first + length
    out = torch.empty(tokens, HEADS * SIZE, device="cuda", dtype=torch.bfloat16)
    dout, gradients = torch.randn_like(out), [torch.empty_like(x) for x in (q, k, v)]

    def forward(config=None):
        return attention.attention(q, k, v, first, end, None, heads, out, config=config)

    sums = forward()

    def backward(queries, keys):
        configs = tile(*queries), tile(*keys), None
        return milliseconds(
            lambda: attention_backward.attention_backward(
                dout, q, k, v, out, sums, first, end, None, heads, *gradients, configs=configs
            )
        )

    return {
        "forward": {str(c): milliseconds(lambda c=c: forward(tile(*c))) for c in FORWARD},
        "backward by the queries' tile": {str(c): backward(c, KEYED[0]) for c in QUERIES},
        "backward by the keys' tile": {str(c): backward(QUERIES[0], c) for c in KEYED},
    }


def vendor(tokens: int, deterministic: bool) -> dict:
    import torch

    torch.use_deterministic_algorithms(deterministic)
    q, k, v = (torch.randn(1, n, tokens, SIZE, device="cuda").bfloat16() for n in (HEADS, KEYS, KEYS))
    aten, dout = torch.ops.aten, torch.randn_like(q)

    def forward():
        return aten._scaled_dot_product_cudnn_attention(q, k, v, None, True, 0.0, True, False, scale=None)

    out, sums, cq, ck, mq, mk, seed, offset, _ = forward()

    def backward():
        return aten._scaled_dot_product_cudnn_attention_backward(
            dout, q, k, v, out, sums, seed, offset, None, cq, ck, mq, mk, 0.0, True, scale=None
        )

    same = [bool((a == b).all()) for a, b in zip(backward(), backward())]
    return {
        "forward": milliseconds(forward),
        "backward": milliseconds(backward),
        "same bits twice": dict(zip(("dq", "dk", "dv"), same)),
    }


def main() -> None:
    options = common.saving(__doc__)
    args = options.parse_args()
    import torch

    before = common.machine()
    common.save(
        "attention_gpu",
        args,
        before,
        gpu=torch.cuda.get_device_name(0),
        tokens=TOKENS,
        heads=[HEADS, KEYS, SIZE],
        triton={f"{n} example{'s' * (n > 1)}": ours(TOKENS, n) for n in (1, 8)},
        cudnn={name: vendor(TOKENS, name == "deterministic") for name in ("usual", "deterministic")},
    )


if __name__ == "__main__":
    main()
