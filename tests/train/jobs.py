"""A whole small training job on the fake trainee, and lives of it that end at a chosen operation."""

from __future__ import annotations

import errno
import os
import signal
from contextlib import contextmanager
from pathlib import Path

from anytune.files import copy
from anytune.train.steps import Steps
from anytune.train.progress import Console
from anytune.train.resume import open_run
from anytune.train.settings import TrainSettings
from anytune.train.trainer import Trainer
from tests.train.fake import FakeProduct, FakeTrainee, chain_dataset

SETTINGS = {
    "context": 32,
    "ubatch": 32,
    "batch": 96,
    "epochs": 3,
    "lr": 0.05,
    "checkpoint_save_steps": 2,
    "val_every": 3,
    "warmup_ratio": 0.1,
}


def job(run_dir: Path | None, *, train=None, val=None, trainee=None, prepare=None, base="f" * 64, say=None, **changes):
    """Run (or with resume_from, continue) the job; returns (Result, trainer)."""
    settings = TrainSettings(**dict(SETTINGS, run_dir=str(run_dir) if run_dir else None, **changes))
    train = train if train is not None else chain_dataset()
    val = val if val is not None else chain_dataset(12, seed=1)
    trainee = trainee or FakeTrainee()
    console = Console(quiet=True)
    if say is not None:
        console.say = say
    identity = {
        "base": base,
        "data": train.fingerprint,
        "validation": val.fingerprint if val else None,
        "settings": settings.exact(),
        "trainee": trainee.spec,
    }
    run, run_id, found = open_run(settings, "toy", identity, {"model": "toy.gguf"}, console.say)
    trainer = Trainer(
        trainee,
        train,
        val or None,
        settings,
        run,
        run_id=run_id,
        identity=identity,
        resume=found,
        console=console,
        steps=Steps(train, settings),
        product=FakeProduct(trainee),
    )
    if prepare:
        prepare(trainer)
    try:
        result = trainer.run()
    finally:
        console.close()
    if result.path:
        copy(result.path, run.path / "out.gguf")
    return result, trainer


#: every call by which a save changes the disk
OPERATIONS = ("write", "fsync", "rename", "replace", "link", "mkdir", "unlink", "rmdir", "open")


@contextmanager
def operations(before):
    """Call before(name) ahead of each disk operation in OPERATIONS (names of functions of os)."""
    real = {name: getattr(os, name) for name in OPERATIONS}

    def wrapped(name):
        def call(*args, **kwargs):
            before(name)
            return real[name](*args, **kwargs)

        return call

    for name in OPERATIONS:
        setattr(os, name, wrapped(name))
    try:
        yield
    finally:
        for name, function in real.items():
            setattr(os, name, function)


def life(moment: int, body) -> bool:
    """Run body() in a forked child that kills itself (SIGKILL) at its moment-th event; True if it was killed.

    An event is a disk operation or the start of a micro-batch. body(event) must call event() at the latter.
    """
    child = os.fork()
    if child == 0:
        code = 1
        try:
            count = 0

            def event(name=""):
                nonlocal count
                count += 1
                if count == moment:
                    os.kill(os.getpid(), signal.SIGKILL)

            with operations(event):
                body(event)
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return True
    if os.WEXITSTATUS(status):
        raise AssertionError("a life failed instead of being killed")
    return False


def full_disk(after: int, names=("write", "fsync", "rename"), code=errno.ENOSPC):
    """For operations(): the calls in `names` from the after-th on fail; call .heal() to end it."""
    count, broken = 0, True

    def before(name):
        nonlocal count
        if name in names:
            count += 1
            if broken and count >= after:
                raise OSError(code, os.strerror(code))

    def heal():
        nonlocal broken
        broken = False

    before.heal = heal
    return before
