"""The processes that train one model together: one a GPU, on one machine or several, over torch.distributed.

SingleProcess is the usual case, one process, for whom everything here is a no-op. join() makes a real ProcessGroup
from torchrun's environment variables (see environment.py). Arrays on CUDA travel by NCCL, everything else by gloo.
Nothing is pickled: what travels is numbers, or JSON as bytes.

Every rank must call the same methods in the same order. A rank that ends breaks its connections; the others get
WorkerLost from the next method they call, and one that hangs in the device's driver is ended by its watch (watch.py).
"""

from __future__ import annotations

import contextlib
import datetime
import importlib.util
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from anytune.errors import UserError
from anytune.distributed.environment import torchrun_variables
from anytune.distributed.failure import PeerError, WorkerLost, give_up
from anytune.distributed.watch import Watch

TIMEOUT = 900.0  # seconds that one rank may keep the others waiting: the slowest file, the first compilation
GRACE = 10.0  # seconds for a rank to notice by itself that another one is gone, before its watcher ends it
CHUNK = 64 << 20  # bytes of an array that travel at once
_store: Any = None  # kept for the life of the process: rank 0's holds the server that the others meet at
_joined = 0


class SingleProcess:
    """One process. local_size: processes on this machine; shard: sliced weights were asked for; sharded: they are in
    use (the engine says so)."""

    rank, size, local_rank, local_size, shard, sharded = 0, 1, 0, 1, False, False

    def share(self, items: Sequence) -> list:
        """This rank's part: items rank, rank + size, …"""
        return list(items[self.rank :: self.size])

    def all_reduce_(self, array) -> None:
        """Add up a float32 array (a torch tensor or NumPy) over all ranks, in place, in the device's own order."""

    def all_reduce(self, values: Sequence[float]) -> list[float]:
        """Each number's sum over ranks, in float64, added in the order of ranks."""
        return [float(value) for value in values]

    def any(self, flag: bool) -> bool:
        """Whether it is true on some rank."""
        return bool(flag)

    def minimum(self, n: int) -> int:
        """The smallest over ranks."""
        return int(n)

    def broadcast(self, value: Any) -> Any:
        """rank 0's JSON-able value, on all."""
        return value

    def broadcast_arrays(self, arrays: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """rank 0's arrays of numbers, on all (the others' argument is ignored)."""
        return arrays

    def on_rank0(self, work: Callable[[], Any]) -> Any:
        """work() on rank 0 alone -> its JSON-able value, on all. What it raises there is PeerError on the others."""
        return work()

    def barrier(self) -> None:
        """Until all ranks are here."""

    def close(self) -> None:
        """The end, once all ranks have come to it."""

    def abort(self) -> None:
        """The end of this rank alone, after an error: the others will find it gone."""


class ProcessGroup(SingleProcess):
    """More than one process; see join(). Methods raise WorkerLost if another one is gone."""

    def __init__(self, rank: int, size: int, local_rank: int, device=None, timeout: float = TIMEOUT):
        """device: torch's, of the engine; None for NumPy. Raises UserError if the others cannot be met."""
        global _store, _joined
        import torch
        import torch.distributed as dist

        self.rank, self.size, self.local_rank, self.timeout = rank, size, local_rank, timeout
        self.local_size = int(os.environ.get("LOCAL_WORLD_SIZE") or size)
        self.torch, self.dist = torch, dist
        self.lost = False
        self._nccl = device is not None and device.type == "cuda"
        limit = datetime.timedelta(seconds=timeout)
        if dist.is_initialized():
            raise UserError(
                "torch.distributed is already in use by this process: let anytune set it up, or train in one process."
            )
        try:
            if _store is None:
                _store = next(dist.rendezvous("env://", timeout=limit))[0]
            _joined += 1
            where = {"device_id": device} if self._nccl else {}
            store = dist.PrefixStore(f"anytune-{_joined}", _store)
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if self._nccl else "gloo",
                rank=rank,
                world_size=size,
                timeout=limit,
                store=store,
                **where,
            )
            self._watch = Watch(rank, size, store, timeout, self._gone)
        except (RuntimeError, ValueError, OSError) as error:
            raise UserError(
                f"The {size} processes of this training do not find each other at "
                f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')} ({_first(error)}): check "
                "that all were started, and that the machines reach each other."
            ) from None
        self.gather_into = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor

    # -- numbers and arrays -----------------------------------------------------------------------------

    def all_reduce_(self, array) -> None:
        with self._contact():
            if isinstance(array, np.ndarray):
                self.dist.all_reduce(self.torch.from_numpy(array))
            elif array.device.type == "cpu" or (array.device.type == "cuda" and self._nccl):
                self.dist.all_reduce(array)
            else:  # XPU, MPS: by way of the host
                host = array.cpu()
                self.dist.all_reduce(host)
                array.copy_(host)

    def all_gather_(self, out, piece):
        """Fill `out` with all ranks' pieces, in order -> a handle; its wait() holds up the device's stream (or the CPU)
        until that is done. Both are tensors on the device; nothing may touch them before."""
        with self._contact():
            return self.gather_into(out, piece, async_op=True)

    def wait_for(self, handle) -> None:
        with self._contact():
            handle.wait()

    def all_reduce(self, values: Sequence[float]) -> list[float]:
        with self._contact():
            own = self.torch.tensor([float(value) for value in values], dtype=self.torch.float64)
            every = [self.torch.empty_like(own) for _ in range(self.size)]
            self.dist.all_gather(every, own)
        total = every[0].clone()
        for other in every[1:]:
            total += other
        return total.tolist()

    def any(self, flag: bool) -> bool:
        return self.all_reduce([bool(flag)])[0] > 0

    def minimum(self, n: int) -> int:
        with self._contact():
            value = self.torch.tensor([int(n)], dtype=self.torch.int64)
            self.dist.all_reduce(value, op=self.dist.ReduceOp.MIN)
        return int(value)

    def broadcast(self, value: Any) -> Any:
        text = json.dumps(value).encode() if self.rank == 0 else b""
        size = np.array([len(text)], np.int64)
        self._from_first(size)
        data = np.frombuffer(text, np.uint8).copy() if self.rank == 0 else np.empty(int(size[0]), np.uint8)
        self._from_first(data)
        return json.loads(data.tobytes())

    def broadcast_arrays(self, arrays: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        kinds = self.broadcast(
            {name: [list(arrays[name].shape), arrays[name].dtype.str] for name in arrays} if self.rank == 0 else None
        )
        made = {}
        for name, (shape, dtype) in kinds.items():
            made[name] = np.array(arrays[name], order="C") if self.rank == 0 else np.empty(shape, dtype)
            flat = made[name].reshape(-1).view(np.uint8)
            for low in range(0, flat.size, CHUNK):
                self._from_first(flat[low : low + CHUNK])
        return made

    def _from_first(self, array: np.ndarray) -> None:
        if array.size:
            with self._contact():
                self.dist.broadcast(self.torch.from_numpy(array), 0)

    def on_rank0(self, work: Callable[[], Any]) -> Any:
        outcome = None
        if self.rank == 0:
            try:
                outcome = {"value": work()}
            except BaseException as error:
                if not isinstance(error, WorkerLost):
                    self.broadcast({"error": f"{type(error).__name__}: {error}", "user": isinstance(error, UserError)})
                raise
        outcome = self.broadcast(outcome)
        if "error" in outcome:
            raise PeerError(outcome["error"])
        return outcome["value"]

    # -- the others -------------------------------------------------------------------------------------

    def barrier(self) -> None:
        self.all_reduce([0.0])

    def close(self) -> None:
        self.barrier()
        self._watch.good_bye()
        self.barrier()
        self._watch.close()
        self.dist.destroy_process_group()

    def abort(self) -> None:
        self.lost = True
        self._watch.close()
        if not self._nccl:  # NCCL's would wait for the others; the process ends soon
            with contextlib.suppress(RuntimeError):
                self.dist.destroy_process_group()

    @contextlib.contextmanager
    def _contact(self):
        """What torch raises when another rank is gone, as WorkerLost."""
        try:
            yield
        except RuntimeError as error:
            self.lost = True
            raise WorkerLost(
                f"process {self.rank} of {self.size} lost the others ({_first(error)}), one of which ended, "
                "hung or cannot be reached any more"
            ) from None

    def _gone(self, rank: int) -> None:
        """In the watching thread: another rank has ended. So does this one, unless it notices by itself."""
        end = time.monotonic() + GRACE
        while not self.lost:
            if time.monotonic() > end:
                give_up(
                    WorkerLost(
                        f"process {rank} of {self.size} is gone, and process {self.rank} timed out waiting for it; "
                        "the same command with --resume-from auto continues from the last checkpoint"
                    )
                )
            time.sleep(0.1)


def join(device=None, timeout: float = TIMEOUT) -> SingleProcess:
    """The process group that the environment describes, SingleProcess without one. device: torch's device of the
    engine, or None (NumPy).

    Raises UserError if the environment makes no sense, or if the others do not come.
    """
    found = torchrun_variables()
    if not found:
        return SingleProcess()
    if importlib.util.find_spec("torch") is None:
        raise UserError("training with several processes needs PyTorch: pip install torch.")
    return ProcessGroup(int(found["RANK"]), int(found["WORLD_SIZE"]), int(found["LOCAL_RANK"]), device, timeout)


def _first(error: Exception) -> str:
    """What went wrong in a few words: torch's messages begin with a place in its source, and go on for a page."""
    text = " ".join(str(error).split())
    if text.startswith("[") and "] " in text:
        text = text.partition("] ")[2]
    return text.partition(". ")[0][:160] or type(error).__name__
