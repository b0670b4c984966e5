"""Slices of a model's blocks: every matrix comes back whole, a layer at a time, and the next one is foreseen."""

from types import SimpleNamespace

import numpy as np
import pytest

from tests.support.require import need

need("torch")
import torch  # noqa: E402

from anytune.engine.torch.slices import Slices  # noqa: E402

LAYERS, SHAPES = 5, {"attn_q": (7, 34), "attn_k": (3, 18), "ffn_up": (10, 34)}


def matrix(name, rows, row_bytes):
    values = torch.from_numpy(np.random.default_rng(sum(map(ord, name))).integers(0, 256, (rows, row_bytes), np.uint8))
    return SimpleNamespace(
        name=name,
        out_features=rows,
        row_bytes=row_bytes,
        values=values,
        slices=None,
        read=lambda low, high: values[low:high].clone(),
    )


class Ranks:
    """A process group in one process: what a rank gathers is taken from the others' slices at once."""

    def __init__(self, size):
        self.size, self.all = size, []

    def member(self, rank):
        def gather(out, piece):
            layer = next(name for name, held in self.all[rank].pieces.items() if held is piece)
            out.copy_(torch.cat([other.pieces[layer] for other in self.all]))
            return layer

        return SimpleNamespace(size=self.size, rank=rank, all_gather_=gather, wait_for=lambda handle: None)


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_every_matrix_comes_back_whole_and_is_foreseen(size):
    ranks = Ranks(size)
    weights = [
        [matrix(f"blk.{i}.{name}.weight", *shape) for i in range(LAYERS) for name, shape in SHAPES.items()]
        for _ in range(size)
    ]
    for rank in range(size):
        ranks.all.append(
            Slices(SimpleNamespace(process_group=ranks.member(rank), device=torch.device("cpu")), weights[rank])
        )
    one, order = ranks.all[-1], [*range(LAYERS), *reversed(range(LAYERS))]
    late = []
    for _ in range(3):
        for layer in order:
            for weight in weights[-1][layer * len(SHAPES) : (layer + 1) * len(SHAPES)]:
                whole = torch.full_like(weight.values, 1)
                seen = 0
                for first, part in one.take(weight):
                    whole[first : first + len(part)] = part
                    seen += len(part)
                assert seen == weight.out_features and torch.equal(whole, weight.values)
        late.append(one.late)
    assert late[0] <= 2 * LAYERS - 1 and late[2] == late[1] <= late[0] + 2, late
    one.start()
    assert one.held == [None, None]
    for _ in one.take(weights[-1][0]):
        pass
    assert one.late == late[2] + 1 and one.held[1 - one.now] == "blk.1"  # the second is on its way again
    one.stop()
    assert one.works == [None, None]
