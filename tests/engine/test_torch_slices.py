"""Slices of a model's blocks: every matrix comes back whole, a layer at a time, and the next one is foreseen."""

from types import SimpleNamespace

import numpy as np
import pytest

from anytune.model import Lora, load
from anytune.distributed.process_group import SingleProcess
from tests.model.conftest import stream
from tests.support import fake_cuda, tiny
from tests.support.require import need
from tests.support.triton import DEVICE

need("torch")
import torch  # noqa: E402

from anytune.engine.torch.replay import Recorder  # noqa: E402
from anytune.engine.torch.sizes import AWAY, Sizes  # noqa: E402
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
        with one.running("train"):
            for layer in order:
                for weight in weights[-1][layer * len(SHAPES) : (layer + 1) * len(SHAPES)]:
                    whole = torch.full_like(weight.values, 1)
                    seen = 0
                    for first, part in one.take(weight):
                        whole[first : first + len(part)] = part
                        seen += len(part)
                    assert seen == weight.out_features and torch.equal(whole, weight.values)
        late.append(one.late)
        assert one.works == one.held == [None, None]
    assert late == [2 * LAYERS - 2] * 3, late  # where it turns back, the layer before is still there
    with one.running("validate"):  # another order of its own
        for _ in one.take(weights[-1][0]):
            pass
    assert one.late == late[2] + 1
    with one.running("train"):
        assert one.held[1] == "blk.0"  # on its way before it is asked for
        for _ in one.take(weights[-1][0]):
            pass
        assert one.held[0] == "blk.1"
    assert one.late == late[2] + 1


class Alone(SingleProcess):
    """A process group of one that shares its blocks out, with its gathers counted."""

    shard, gathers = True, 0

    def all_gather_(self, out, piece):
        self.gathers += 1
        out.copy_(piece)
        return self

    def wait_for(self, handle) -> None:
        assert handle is self


def steps(path, place: str, sizes: Sizes = Sizes()) -> list:
    """[loss, gathers] of each of four steps, then the parameters."""
    model = load(path, device=place, threads=1)
    process_group = model.engine.process_group = Alone()
    trainee = model.trainee(Lora(rank=3), ubatch=64)
    model.engine.sizes, trainee.keep = sizes, 1
    found = []
    for step in range(1, 5):
        before = process_group.gathers
        loss = float(trainee.accumulate(stream([17, 24]), 0.1, step, 0))
        trainee.update(1e-2, step)
        found.append((loss, process_group.gathers - before))
    assert model.engine.slices is not None
    return [*found, model.engine.host(trainee.parameters).tolist()]


@pytest.mark.skipif(DEVICE != "cuda", reason="needs a card")
@pytest.mark.parametrize("sizes", [Sizes(), AWAY])
def test_a_recorded_pass_gathers_and_computes_as_an_eager_one(tmp_path, monkeypatch, sizes):
    path = tiny.write(tmp_path / "m.gguf", "qwen3", "Q8_0")
    got = steps(path, "cuda", sizes)
    monkeypatch.setattr(Recorder, "_record", lambda *args: None)
    assert got == steps(path, "cuda", sizes)


def test_a_recording_is_cut_where_a_layer_begins(tmp_path, monkeypatch):
    path = tiny.write(tmp_path / "m.gguf", "qwen3", "Q8_0")
    want = [gathers for _, gathers in steps(path, "cpu-torch")[:-1]]
    cuda = fake_cuda.install(monkeypatch)
    got = [gathers for _, gathers in steps(path, "cpu-torch")[:-1]]
    # two layers, forward and backward: where the way back begins both are there still
    assert got == want == [2, 2, 2, 2] and cuda.made == 1 + 4 + 1 and not cuda.faults  # a pool, four graphs, the update
