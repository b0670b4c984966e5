"""The loop: steps of micro-batches, evaluations, checkpoints; stops early, on request, or at a NaN."""

from __future__ import annotations

import collections
import functools
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from anytune.errors import UserError
from anytune.files import atomic_write
from anytune.memory import process_bytes
from anytune.text.packing import make_batch, pack
from anytune.train import checkpoint as ckpt
from anytune.train import metrics as metrics_file
from anytune.train.checkpoint import Checkpoint
from anytune.train.interrupt import Interrupts
from anytune.train.plan import Plan, Position
from anytune.train.plot import plot_losses
from anytune.train.progress import Console, duration
from anytune.train.run import RunFolder, lock
from anytune.train.schedule import Schedule
from anytune.train.settings import TrainSettings
from anytune.train.sinks import Sinks
from anytune.train.tensors import CHUNK


@dataclass
class Result:
    """How a run ended.

    stopped: "finished", "early" (validation no longer better) or "interrupted"; adapter_path: the adapter in
    the run's folder, the best on validation if there was one, else the last (None if no step was done);
    best: {"step", "val_loss"} or None; load: reads an adapter's file.
    """

    adapter_path: Path | None
    run_dir: Path
    stopped: str
    step: int
    total_steps: int
    best: dict | None
    checkpoint: Path | None
    load: Callable[[Path], Any] | None = field(default=None, repr=False)

    @functools.cached_property
    def adapter(self) -> Any:
        """The adapter at adapter_path, read when it is first asked for; None if there is none."""
        return self.load(self.adapter_path) if self.load and self.adapter_path else None

    @property
    def metrics(self) -> list[dict]:
        """All rows of metrics.jsonl."""
        return metrics_file.read(self.run_dir / "metrics.jsonl")


@dataclass
class Launched:
    """A step that was asked for; its losses and norm are Numbers (see engine/base.py) that may still be on their way."""
    position: Position
    bins: list
    losses: list
    norm: Any
    lr: float
    tokens: int
    loss_tokens: int
    started: float = field(default_factory=time.perf_counter)


def _bad(value) -> bool:
    """Whether it is known already that a Number is not finite."""
    return isinstance(value, float) and not math.isfinite(value)


class Trainer:
    """One run of a trainee over a data set.

    trainee      computes: accumulate, evaluate, update, state, load_state, adapter (see anytune.model)
    train, val   Dataset; val may be None
    run          the run's folder (see run.py); run_id, identity and engine go into its checkpoints
    resume       a verified checkpoint of this identity, or None
    progress     called with each metrics row as a dict (after it is written)
    make_adapter gives the adapter to save at once, without a copy where possible
    load_adapter reads back an adapter file that its save() wrote, for Result.adapter
    """

    def __init__(self, trainee, train, val, settings: TrainSettings, run: RunFolder, *, run_id: str = "",
                 identity: dict | None = None, engine: dict | None = None, resume: Checkpoint | None = None,
                 console: Console | None = None,
                 progress: Callable[[dict], None] | None = None, plan: Plan | None = None,
                 make_adapter: Callable[[], object] | None = None,
                 load_adapter: Callable[[Path], object] | None = None):
        self.trainee, self.train, self.val, self.settings = trainee, train, val, settings
        self.run_folder, self.run_id = run, run_id
        self.identity, self.engine = identity or {}, engine or {}
        self.console, self.progress = console or Console(quiet=True), progress
        self.plan = plan or Plan(train, settings)
        self.schedule = Schedule.of(settings, self.plan.total)
        self.make_adapter = make_adapter or (lambda: trainee.adapter(copy=False))
        self.load_adapter = load_adapter
        self.resume = resume
        self.step, self.best, self.waited = 0, None, 0
        self.pending: dict | None = None        # a row whose step is done and whose evaluation is not
        self.saved: Path | None = None          # the last good checkpoint
        self.saved_step = 0
        if val is not None and not np.any(val.loss):
            raise UserError("The validation data has no token with loss: there is nothing to measure.")
        self.val_bins = pack(val, settings.ubatch, settings.seed, 0) if val is not None else []
        self.interrupts = Interrupts()
        self.lag = getattr(trainee, "lag", 0)   # steps that the device may be behind
        self.seen_tokens, self.seconds, self.rate, self.settled = 0, 0.0, None, 0.0

    # -- the run ----------------------------------------------------------------------------------------

    def run(self) -> Result:
        """Train to the end, or until stopped. Raises UserError at a NaN, having kept the last good state."""
        folder = self.run_folder
        with lock(folder.path), lock(folder.checkpoints), self.interrupts:
            self.console.log_to(folder.log)
            if self.resume is not None:
                self._restore(self.resume)
            through = self.step - 1 if self.pending else self.step
            self.metrics = metrics_file.MetricsFile(folder.metrics, through, self.console.say)
            self.sinks = Sinks(self.settings.sinks, folder.path, folder.name, self.settings.exact(),
                               self.console.say)
            try:
                stopped = self._loop()
                result = self._finish(stopped)
            finally:
                self.metrics.close()
                self.sinks(None)
        return result

    def _loop(self) -> str:
        if self.pending is not None and not self._complete(self.pending):
            return "interrupted"
        queue: collections.deque[Launched] = collections.deque()
        for position, bins in self.plan.after(self.step):
            if self._out_of_patience():
                return "early"
            launched = self._launch(position, bins)
            if launched is not None:
                queue.append(launched)
            # a device may lag behind by a step, but not where the step's outcome decides what comes next
            kept = 0 if launched is None or self.interrupts.stop or self._decides(position) else self.lag
            while len(queue) > kept:
                if not self._settle(queue.popleft()):
                    return "interrupted"
            if launched is None or (self.interrupts.stop and self.step < self.plan.total):
                return "interrupted"
        return "finished"

    def _decides(self, position: Position) -> bool:
        """Whether something happens after this step that needs its outcome: evaluation, checkpoint, the end."""
        return position.step == self.plan.total or self._evaluates(position) or self._saves(position.step)

    def _saves(self, step: int) -> bool:
        every = self.settings.checkpoint_save_steps
        return bool(every and step % every == 0 and step < self.plan.total)

    def _launch(self, position: Position, bins) -> Launched | None:
        """Ask for one optimizer step. None: interrupted in it, nothing applied."""
        step, s = position.step, self.settings
        batches = [make_batch(self.train, indexes) for indexes in bins]
        loss_tokens = sum(batch.loss_tokens for batch in batches)
        losses = []
        for micro, batch in enumerate(batches):
            losses.append(self.trainee.accumulate(batch, 1.0 / loss_tokens, step, micro))
            if _bad(losses[-1]):
                raise self._diverged(step, f"the loss is {losses[-1]}", bins[micro])
            if self.interrupts.stop and micro + 1 < len(batches):
                return None
        lr = self.schedule.lr(step)
        norm = self.trainee.update(lr, step, beta1=s.beta1, beta2=s.beta2, eps=s.eps,
                                   weight_decay=s.weight_decay, max_grad_norm=s.max_grad_norm)
        return Launched(position, bins, losses, norm, lr, sum(len(batch.ids) for batch in batches), loss_tokens)

    def _settle(self, launched: Launched) -> bool:
        """Take in the outcome of a step, and do what is due after it. False: interrupted in its evaluation."""
        position, step = launched.position, launched.position.step
        losses = [float(loss) for loss in launched.losses]
        for micro, loss in enumerate(losses):
            if not math.isfinite(loss):
                raise self._diverged(step, f"the loss is {loss}", launched.bins[micro])
        norm = float(launched.norm)
        if not math.isfinite(norm):
            raise self._diverged(step, f"the gradient's norm is {norm}", [i for b in launched.bins for i in b])
        now = time.perf_counter()
        seconds, self.settled = now - max(self.settled, launched.started), now
        self._time(launched.tokens, seconds)
        self.step = step
        row = {"step": step, "epoch": position.epochs_done, "loss": sum(losses) / launched.loss_tokens, "val_loss": None,
               "lr": launched.lr, "grad_norm": norm, "tokens": launched.tokens, "loss_tokens": launched.loss_tokens,
               "tokens_per_s": round(launched.tokens / max(seconds, 1e-9), 2), "rss_bytes": process_bytes()}
        if not self._complete(row, self._evaluates(position)):
            return False
        if self._saves(step):
            self._checkpoint()
        return True

    def _complete(self, row: dict, evaluate: bool = True) -> bool:
        """What follows a step: evaluation, the row, the progress line. False: interrupted in evaluation."""
        if evaluate:
            value = self._evaluate()
            if value is None:
                self.pending = row
                return False
            row = dict(row, val_loss=value)
            self._keep_best(row["step"], value)
        self.pending = None
        self.metrics.append(row)
        self.sinks(row)
        self.console.step(row, self.plan.total, self._eta(), self.best and self.best["val_loss"])
        if self.progress:
            self.progress(row)
        return True

    # -- validation -------------------------------------------------------------------------------------

    def _evaluates(self, position: Position) -> bool:
        if self.val is None:
            return False
        every, step = self.settings.val_every, position.step
        return step == self.plan.total or (step % every == 0 if every else position.ends_epoch)

    def _evaluate(self) -> float | None:
        """Mean loss over the validation set's loss tokens; None if interrupted."""
        total, count = 0.0, 0
        for indexes in self.val_bins:
            batch = make_batch(self.val, indexes)
            if batch.loss_tokens:
                total += float(self.trainee.evaluate(batch))
                count += batch.loss_tokens
            if self.interrupts.stop and indexes is not self.val_bins[-1]:
                return None
        return total / count

    def _keep_best(self, step: int, value: float) -> None:
        if math.isfinite(value) and (self.best is None or value < self.best["val_loss"]):
            try:
                self.make_adapter().save(self.run_folder.best)
            except (OSError, UserError) as error:
                self.console.say(f"The best adapter so far (step {step}) cannot be kept: {_why(error)}")
                return
            self.best, self.waited = {"step": step, "val_loss": value}, 0
        else:
            self.waited += 1

    def _out_of_patience(self) -> bool:
        return bool(self.val is not None and 0 < self.settings.early_stop <= self.waited)

    # -- checkpoints ------------------------------------------------------------------------------------

    def _checkpoint(self) -> None:
        """Write one for the current step. A failure is told and costs nothing but itself."""
        if not self._sound():
            return      # the next step will say so; the last good checkpoint stays the last
        self.metrics.sync()
        info = {"position": self.plan.position(self.step), "best": self.best, "waited": self.waited,
                "pending": self.pending, "run_id": self.run_id, "run": self.run_folder.name,
                "identity": self.identity, "engine": self.engine}
        folder = self.run_folder.checkpoints
        try:
            best = self.run_folder.best if self.best else None
            self.saved = ckpt.save(folder, self.step, self.trainee.state(), info, best)
        except OSError as error:
            kept = f"the one of step {self.saved_step} is kept" if self.saved else "there is none yet"
            self.console.say(f"The checkpoint of step {self.step} cannot be written to {folder}: "
                             f"{_why(error)}; {kept}.")
            return
        self.saved_step = self.step
        ckpt.prune(folder, self.settings.keep_checkpoints, self.saved)

    def _sound(self) -> bool:
        """No NaN or infinity in the state; by sums, which carry either on and take no memory."""
        return all(math.isfinite(array.sum(dtype=np.float64)) for array in self.trainee.state().values())

    def _restore(self, found: Checkpoint) -> None:
        info = found.info
        if found.step > self.plan.total or info["position"] != self.plan.position(found.step):
            raise UserError(f"{found.path} stands at another place in the data than this version of the "
                            f"program puts step {found.step}: it cannot be continued exactly, start anew.")
        self.trainee.load_state(found.tensors())
        self.step, self.best, self.waited = found.step, info["best"], info["waited"]
        self.pending = info["pending"]
        if self.pending is not None and not metrics_file.sound(self.pending, self.step):
            raise UserError(f"{found.path} holds a malformed row of metrics: use another checkpoint.")
        if found.best is not None:
            copy(found.best, self.run_folder.best)
        if info["engine"] != self.engine:
            self.console.say(f"The checkpoint was made with {_words(info['engine'])}, and this is "
                             f"{_words(self.engine)}: as good, but not bit for bit what it would have been.")
        self.saved, self.saved_step = found.path, found.step - bool(self.pending)
        self.seen_tokens = round(self.plan.tokens * self.step / self.plan.total)
        self.console.say(f"Continuing after step {self.step} of {self.plan.total} from {found.path}")

    # -- ends -------------------------------------------------------------------------------------------

    def _finish(self, stopped: str) -> Result:
        folder = self.run_folder
        if self.step > 0 and (self.saved_step != self.step or self.pending):
            self._checkpoint()
        if self.step > 0 and self.best is None and not self._sound():   # the last update was too much
            raise UserError(f"After step {self.step} the parameters are no longer finite. "
                            f"{f'The last good state is {self.saved}. ' if self.saved else ''}{self._advice()}")
        if self.step > 0:
            if self.best is None:
                self.make_adapter().save(folder.adapter)
            else:
                copy(folder.best, folder.adapter)
            self._plot()
        return Result(folder.adapter if self.step > 0 else None, folder.path, stopped, self.step,
                      self.plan.total, self.best, self.saved, self.load_adapter)

    def _plot(self) -> None:
        try:
            plot_losses(self.run_folder.metrics, self.run_folder.plot, self.run_folder.name)
        except OSError as error:
            self.console.say(f"The loss plot cannot be written: {_why(error)}.")

    def _diverged(self, step: int, what: str, indexes) -> UserError:
        """The state is that of the step before: keep it, and say what to do."""
        if self.step > self.saved_step:
            self._checkpoint()
        lines = ", ".join(sorted({self.train.where(i) for i in indexes}))
        if len(lines) > 300:
            lines = lines[:300] + "…"
        kept = ""
        if self.step > 0 and self._sound():
            self.make_adapter().save(self.run_folder.adapter)
            kept = f"What was learned before is in {self.run_folder.adapter} (--lora continues from it). "
        elif self.saved:
            kept = f"The last good state is {self.saved}. "
        return UserError(f"Step {step}: {what}, so training stopped before applying it ({lines}). {kept}"
                         f"{self._advice()}")

    def _advice(self) -> str:
        return (f"Start again with a lower --learning-rate (now {self.settings.lr:g}), a longer --warmup-ratio "
                "or a lower --max-grad-norm.")

    # -- time -------------------------------------------------------------------------------------------

    def _time(self, tokens: int, seconds: float) -> None:
        self.seen_tokens += tokens
        rate = tokens / max(seconds, 1e-9)
        if self.rate is None:
            left = (self.plan.tokens - self.seen_tokens) / rate
            if left > 60:
                self.console.say(f"First step: {rate:,.0f} tokens/s, so about {duration(left)} to go.")
        self.rate = rate if self.rate is None else 0.9 * self.rate + 0.1 * rate

    def _eta(self) -> float | None:
        return max(0, self.plan.tokens - self.seen_tokens) / self.rate if self.rate else None


def copy(source: Path, target: Path) -> None:
    with open(source, "rb") as file, atomic_write(target) as out:
        shutil.copyfileobj(file, out, CHUNK)


def _why(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _words(engine: dict) -> str:
    return ", ".join(f"{name} {value}" for name, value in sorted(engine.items()))[:200] or "nothing known"
