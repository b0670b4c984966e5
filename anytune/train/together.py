"""A run in several processes: how they join, what they must have been given alike, what they share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anytune.distributed.process_group import SingleProcess, join
from anytune.distributed.failure import PeerError
from anytune.distributed.environment import torchrun_variables
from anytune.engine.check import prove
from anytune.engine.probe import cores
from anytune.errors import UserError
from anytune.train import checkpoint as ckpt
from anytune.train.checkpoint import Checkpoint
from anytune.train.resume import Say, open_run
from anytune.train.run_folder import RunFolder
from anytune.train.settings import TrainSettings

if TYPE_CHECKING:
    from anytune.model import Model


@contextlib.contextmanager
def joined(model: Model, shard: bool) -> Iterator[SingleProcess]:
    """The process group of this process, known to the model's engine within the block. Raises UserError."""
    process_group = join_group(model.engine, shard)
    try:
        yield process_group
        process_group.close()
    except BaseException:
        process_group.abort()
        raise
    finally:
        if process_group.sharded:
            model.hold("blocks")  # whole again, for whatever comes next
        model.engine.process_group = None


def join_group(engine: Any, shard: bool) -> SingleProcess:
    """The process group of this process, made known to its engine. Raises UserError."""
    device, here = engine.device, torchrun_variables().get("LOCAL_RANK")
    if shard and here is None:
        raise UserError(
            "--shard splits the base between processes: start several with `anytune train --gpus N` or torchrun."
        )
    if shard and (device is None or device.type not in ("cpu", "cuda")):
        raise UserError(f"--shard is for CUDA and ROCm (and cpu-torch), not for the {engine.name} engine.")
    if here is not None and device is not None and device.type == "cuda" and device.index != int(here):
        raise UserError(
            f"this process has its model on {device}, but as process {here} on its machine it should use card "
            f"{here}: load it with device='cuda:{here}', or pass the file's path."
        )
    process_group = join(device)
    process_group.shard = shard
    if process_group.size > 1:
        prove(engine, True)  # alone: its known answers hold for one process
        engine.process_group = process_group
    return process_group


def same_job(process_group: SingleProcess, identity: dict) -> None:
    """Raise UserError where this process was given something else than process 0."""
    other = ckpt.differences(process_group.broadcast(identity), identity)
    wrong = process_group.any(bool(other))
    if other:
        raise UserError(
            f"process {process_group.rank} was started differently than process 0: "
            f"{'; '.join(other).replace(' then, ', ' there, ').replace(' now)', ' here)')}."
        )
    if wrong:
        raise PeerError("another process was started differently than process 0")


def rhythm(settings: TrainSettings, engine: Any, process_group: SingleProcess) -> dict:
    """What a resumed run may change, but processes must share, since it decides when and how often they synchronize."""
    return {
        "checkpoint_save_steps": settings.checkpoint_save_steps,
        "--shard": process_group.shard,
        "--device": engine.name,
        "--dtype": engine.identity().get("dtype"),
    }


def share_cores(engine: Any, asked: int | None, process_group: SingleProcess) -> None:
    """Processes of one machine share out its cores, unless the caller asked for a number of threads."""
    workers = engine.workers
    if workers is not None and asked is None and process_group.size > 1:
        engine.use_threads(min(workers.count, max(1, cores() // process_group.local_size)))


def open_together(
    process_group: SingleProcess, settings: TrainSettings, name: str, identity: dict, record: dict, say: Say
) -> tuple[RunFolder, str, Checkpoint | None]:
    """open_run() by process 0, for all."""

    def work() -> list:
        run, run_id, found = open_run(settings, name, identity, record, say)
        return [str(run.path), str(run.checkpoints), run_id, found and [str(found.path), found.step, found.info]]

    path, checkpoints, run_id, found = process_group.on_rank0(work)
    return (
        RunFolder(Path(path), Path(checkpoints)),
        run_id,
        Checkpoint(Path(found[0]), found[1], found[2]) if found else None,
    )
