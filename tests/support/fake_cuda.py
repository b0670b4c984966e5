"""torch.cuda as the torch engine's recordings use it, on the CPU: what a graph or pool does when it is freed at a wrong
moment is told, where the real one would end the process."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import torch


class Cuda:
    """faults: what would have ended the process. alive: graphs and pools that were not freed yet."""

    def __init__(self) -> None:
        self.faults: list[str] = []
        self.in_use = self.alive = self.made = 0

    @contextlib.contextmanager
    def region(self, *args, **how):
        self.in_use += 1
        try:
            yield
        finally:
            self.in_use -= 1

    def thing(self, name: str):
        cuda = self

        class Thing:
            id = (0, 1)

            def __init__(self):
                cuda.alive += 1
                cuda.made += 1

            def replay(self):
                pass

            def capture_begin(self, **how):
                cuda.in_use += 1

            def capture_end(self):
                cuda.in_use -= 1

            def __del__(self):
                cuda.alive -= 1
                if cuda.in_use:
                    cuda.faults.append(f"a {name} was freed while a pool was in use or a graph was being recorded")

        return Thing


def install(monkeypatch) -> Cuda:
    """For the length of a test: engines on torch's CPU record and replay (a replay computes nothing)."""
    from anytune.engine.torch import decode, devices, offload, replay

    cuda = Cuda()
    stream = SimpleNamespace(wait_stream=lambda other: None, synchronize=lambda: None, cuda_stream=0)
    event = SimpleNamespace(record=lambda: None, synchronize=lambda: None)
    for name, value in dict(
        MemPool=cuda.thing("pool"),
        CUDAGraph=cuda.thing("graph"),
        use_mem_pool=cuda.region,
        graph=cuda.region,
        Stream=lambda *a: stream,
        current_stream=lambda *a: stream,
        stream=lambda s: contextlib.nullcontext(),
        Event=lambda **how: event,
        synchronize=lambda: None,
    ).items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(devices.Device, "graphs", True)
    for module in (decode, offload, replay):
        monkeypatch.setattr(module, "page_locked", lambda size, dtype: torch.empty(size, dtype=dtype))
    return cuda
