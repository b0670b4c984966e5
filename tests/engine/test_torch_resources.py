"""Graphs and pools of engines that a collector finds: they wait for a safe point, whatever is under way."""

import gc
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from anytune.model import Lora, load
from tests.model.conftest import stream
from tests.support import tiny
from tests.support.fake_cuda import install
from tests.support.require import need
from tests.support.triton import DEVICE

need("torch")
import torch  # noqa: E402

from anytune.engine.torch import resources  # noqa: E402
from anytune.engine.torch.replay import Recorder, capture  # noqa: E402

card = pytest.mark.skipif(DEVICE != "cuda", reason="needs a card")


@pytest.fixture
def path(tmp_path):
    return tiny.write(tmp_path / "qwen3.gguf", "qwen3")


@pytest.fixture
def cuda(monkeypatch):
    resources.sweep()
    made = install(monkeypatch)
    yield made
    gc.collect()
    resources.sweep()
    assert not made.faults


def trainee_of(path, device):
    return load(path, device=device, threads=1).trainee(Lora(rank=3), ubatch=64)


class Waste(list):
    """Recorders that wait to be let go."""

    def __init__(self, count: int, device: str):
        gc.collect()
        gc.freeze()
        super().__init__(litter(count, device))


def litter(count: int, device: str) -> list:
    """So many recorders with a pool and a graph, each referred to by itself: once dropped only a collector finds it."""
    made = []
    for _ in range(count):
        one = Recorder(SimpleNamespace(device=torch.device(device)))
        one.me = one
        with one._memory():
            x = torch.zeros(8, device=device)
        with capture(pool=one.pool.id, stream=one.own) as graph:
            x += 1
        one.known["graph"] = one.graphs.keep(graph)
        made.append(one)
    return made


def littering(engine, waste: list):
    """Every function of the engine first lets a recorder go, and has the collector find it."""

    def wrapped(function):
        def call(*args, **how):
            if waste:
                waste.pop()
            gc.collect()
            return function(*args, **how)

        return call

    for name, value in vars(engine.f).items():
        if callable(value):
            setattr(engine.f, name, wrapped(value))


def steps(trainee, littered: list) -> list[float]:
    losses = []
    littering(trainee.engine, littered)
    for step in (1, 2, 3):  # eager, recorded, replayed
        for sizes in ([17, 1, 22], [40, 20]):
            losses.append(float(trainee.accumulate(stream(sizes), 0.1, step, 0)))
        float(trainee.update(1e-3, step))
    gc.unfreeze()
    return losses


def test_garbage_at_every_operation(path, cuda):
    """With fakes: a graph or pool that is freed at a wrong moment would end the process."""
    trainee = trainee_of(path, "cpu-torch")
    waste = Waste(400, "cpu")
    steps(trainee, waste)
    assert len(waste) < 300 and cuda.made > 800
    waste.clear()
    del trainee
    gc.collect()
    resources.sweep()
    assert cuda.alive == 0


@card
def test_garbage_at_every_operation_on_a_card(path):
    want = steps(trainee_of(path, "cuda"), [])
    trainee = trainee_of(path, "cuda")
    waste = Waste(300, "cuda")
    assert steps(trainee, waste) == want and len(waste) < 200


def test_what_is_freed_while_another_thread_records_waits(cuda):
    inside, go = threading.Event(), threading.Event()

    def record():
        with resources.working():
            inside.set()
            go.wait(10)

    thread = threading.Thread(target=record)
    thread.start()
    inside.wait(10)
    litter_of_this_thread = resources.Owned()
    litter_of_this_thread.keep(torch.cuda.MemPool())
    litter_of_this_thread.free()
    assert cuda.alive == 1 and not gc.isenabled()
    go.set()
    thread.join()
    assert gc.isenabled()
    resources.sweep()
    assert cuda.alive == 0


def test_graphs_go_before_their_pool(cuda):
    order, owned = [], resources.Owned()

    class Thing:
        def __init__(self, name):
            self.name = name

        def __del__(self):
            order.append(self.name)

    for name in ("pool", "first graph", "second graph"):
        owned.keep(Thing(name))
    del owned
    assert not order
    resources.sweep()
    assert order == ["second graph", "first graph", "pool"]


def test_close_frees_everything(path, cuda):
    with load(path, device="cpu-torch", threads=1) as model:
        trainee = model.trainee(Lora(rank=3), ubatch=64)
        for step in (1, 2, 3):
            trainee.accumulate(stream([40, 20]), 0.1, step, 0)
        assert cuda.alive == 2  # a graph and its pool
    del trainee, model
    gc.collect()
    resources.sweep()
    assert cuda.alive == 0


@card
def test_memory_comes_back_after_close(path):
    def use():
        with load(path, device="cuda") as model:
            trainee = model.trainee(Lora(rank=3), ubatch=64)
            for step in (1, 2, 3):
                trainee.accumulate(stream([40, 20]), 0.1, step, 0)
            decoder = model.decoder(context=64)
            for token in (5, 6, 7):
                decoder.feed([[token]])

    for _ in range(3):  # until each of the two streams has cuBLAS's workspace
        use()
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    for _ in range(3):
        use()
    gc.collect()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() <= before + (8 << 20)


@pytest.mark.parametrize("device", ["numpy", "cpu-torch"])
def test_any_model_can_be_closed(path, device):
    with load(path, device=device, threads=1) as model:
        assert np.isfinite(model.logits([1, 2, 3])).all()
