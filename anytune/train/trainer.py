"""The loop: steps of micro-batches, evaluations, checkpoints; stops early, on request, or at a NaN.

With a team (see team.py) every rank runs this loop and deals itself its part of each step's micro-batches. What decides
where the loop goes (losses, requests to stop) is exchanged before it decides, and rank 0 alone touches the disk, so all
go one way.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import math
import shutil
import time
import zlib
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
from anytune.train.team import Elsewhere, Solo, report
from anytune.train.tensors import CHUNK


@dataclass
class Result:
    """How a run ended.

    stopped: "finished", "early" (validation no longer better) or "interrupted"; path: the adapter (or model) in
    the run's folder, the best on validation if there was one, else the last (None if no step was done);
    best: {"step", "val_loss"} or None; load: reads an adapter's file, None: it is no adapter.
    """

    path: Path | None
    run_dir: Path
    stopped: str
    step: int
    total_steps: int
    best: dict | None
    checkpoint: Path | None
    load: Callable[[Path], Any] | None = field(default=None, repr=False)

    @functools.cached_property
    def adapter(self) -> Any:
        """The adapter at path, read when it is first asked for; None if there is none."""
        return self.load(self.path) if self.load and self.path else None

    @property
    def metrics(self) -> list[dict]:
        """All rows of metrics.jsonl."""
        return metrics_file.read(self.run_dir / "metrics.jsonl")


@dataclass
class Launched:
    """A step that was asked for; its losses and norm are Numbers (see engine/base.py) that may still be on their way.

    losses: of each micro-batch, 0.0 for another rank's.
    """
    position: Position
    bins: list
    losses: list
    norm: Any
    lr: float
    tokens: int
    loss_tokens: int
    started: float      # time.perf_counter()


def _bad(value) -> bool:
    """Whether it is known already that a Number is not finite."""
    return isinstance(value, float) and not math.isfinite(value)


class Trainer:
    """One run of a trainee over a data set.

    trainee      computes: accumulate, evaluate, update, state, load_state (see anytune.model)
    train, val   Dataset; val may be None
    run          the run's folder (see run.py); run_id, identity and engine go into its checkpoints
    resume       a verified checkpoint of this identity, or None
    progress     called with each metrics row as a dict (after it is written)
    product      what is made of it: now().save(path), load, noun, again (see product.py)
    team         the processes that train together, this one among them
    """

    def __init__(self, trainee, train, val, settings: TrainSettings, run: RunFolder, *, run_id: str = "",
                 identity: dict | None = None, engine: dict | None = None, resume: Checkpoint | None = None,
                 console: Console | None = None,
                 progress: Callable[[dict], None] | None = None, plan: Plan | None = None,
                 product: Any = None, team: Solo | None = None):
        self.team = team or Solo()
        self.leads = self.team.rank == 0
        self.trainee, self.train, self.val, self.settings = trainee, train, val, settings
        self.run_folder, self.run_id = run, run_id
        self.identity, self.engine = identity or {}, engine or {}
        self.console, self.progress = console or Console(quiet=True), progress
        self.plan = plan or Plan(train, settings)
        self.schedule = Schedule.of(settings, self.plan.total)
        self.product = product
        self.resume = resume
        self.step, self.best, self.waited = 0, None, 0
        self.pending: dict | None = None        # a row whose step is done and whose evaluation is not
        self.saved: Path | None = None          # the last good checkpoint
        self.saved_step = 0
        if val is not None and not np.any(val.loss):
            raise UserError("The validation data has no token with loss: there is nothing to measure.")
        bins = pack(val, settings.ubatch, settings.seed, 0) if val is not None else []
        self.val_bins = [indexes for indexes in bins if _loss_tokens(val, indexes)]
        self.val_tokens = sum(_loss_tokens(val, indexes) for indexes in bins)
        self.interrupts = Interrupts(quiet=not self.leads)
        self.agreed = False                     # to stop, as far as the team has exchanged it
        self.lag = getattr(trainee, "lag", 0)   # steps that the device may be behind
        self.seen_tokens, self.seconds, self.rate, self.settled = 0, 0.0, None, 0.0

    # -- the run ----------------------------------------------------------------------------------------

    def run(self) -> Result:
        """Train to the end, or until stopped. Raises UserError at a NaN, having kept the last good state."""
        with contextlib.ExitStack() as held:
            self.team.lead(lambda: self._open(held))
            held.enter_context(self.interrupts)
            self._restore(self.resume)
            self.team.lead(lambda: self._record(held))
            return self._finish(self._loop())

    def _open(self, held: contextlib.ExitStack) -> None:
        folder = self.run_folder
        held.enter_context(lock(folder.path))
        held.enter_context(lock(folder.checkpoints))
        self.console.log_to(folder.log)

    def _record(self, held: contextlib.ExitStack) -> None:
        """Open what takes the rows of metrics."""
        folder, say = self.run_folder, self.console.say
        self.metrics = metrics_file.MetricsFile(folder.metrics, self.step - 1 if self.pending else self.step, say)
        held.callback(self.metrics.close)
        self.sinks = Sinks(self.settings.sinks, folder.path, folder.name, self.settings.exact(), say)
        held.callback(self.sinks, None)

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
            kept = 0 if launched is None or self._stop or self._decides(position) else self.lag
            while len(queue) > kept:
                if not self._settle(queue.popleft()):
                    return "interrupted"
            if launched is None or (self._stop and self.step < self.plan.total):
                return "interrupted"
        return "finished"

    def _decides(self, position: Position) -> bool:
        """Whether something happens after this step that needs its outcome: evaluation, checkpoint, the end."""
        return position.step == self.plan.total or self._evaluates(position) or self._saves(position.step)

    def _saves(self, step: int) -> bool:
        every = self.settings.checkpoint_save_steps
        return bool(every and step % every == 0 and step < self.plan.total)

    @property
    def _stop(self) -> bool:
        """Whether to stop: for a team, what was exchanged, so that all ranks turn off at the same place."""
        return self.interrupts.stop if self.team.size == 1 else self.agreed

    def _turns(self, bins) -> list[int | None]:
        """The micro-batches of this rank. None: others have one more; it still takes part in what they exchange."""
        mine = self.team.share(range(len(bins)))
        return mine + [None] * (-(-len(bins) // self.team.size) - len(mine))

    def _exchange(self, bad: bool) -> bool:
        """After each turn: tell of a request to stop, and of a loss that is not finite -> whether anyone has one."""
        stop, bad = self.team.sums([self.interrupts.stop, bad])
        self.agreed = stop > 0
        return bad > 0

    def _launch(self, position: Position, bins) -> Launched | None:
        """Ask for one optimizer step. None: interrupted in it, nothing applied."""
        step, s, turns, begun = position.step, self.settings, self._turns(bins), time.perf_counter()
        loss_tokens = sum(_loss_tokens(self.train, indexes) for indexes in bins)
        losses = [0.0] * len(bins)
        for turn, micro in enumerate(turns):
            if micro is not None:
                batch = make_batch(self.train, bins[micro])
                losses[micro] = self.trainee.accumulate(batch, 1.0 / loss_tokens, step, micro)
            elif self.team.sharded:     # the others need this rank's part of the weights: it goes along, adding nothing
                self.trainee.accumulate(make_batch(self.train, bins[0]), 0.0, step, 0)
            if self._exchange(micro is not None and _bad(losses[micro])):
                self._look(step, self.team.sums([float(loss) for loss in losses]), bins)
            if self._stop and turn + 1 < len(turns):
                return None
        lr = self.schedule.lr(step)
        norm = self.trainee.update(lr, step, beta1=s.beta1, beta2=s.beta2, eps=s.eps,
                                   weight_decay=s.weight_decay, max_grad_norm=s.max_grad_norm)
        tokens = sum(int(self.train.offsets[i + 1] - self.train.offsets[i]) for indexes in bins for i in indexes)
        return Launched(position, bins, losses, norm, lr, tokens, loss_tokens, begun)

    def _look(self, step: int, losses: list[float], bins) -> None:
        """Raise if a micro-batch's loss is not finite."""
        for micro, loss in enumerate(losses):
            if not math.isfinite(loss):
                raise self._diverged(step, f"the loss is {loss}", bins[micro])

    def _settle(self, launched: Launched) -> bool:
        """Take in the outcome of a step, and do what is due after it. False: interrupted in its evaluation."""
        position, step = launched.position, launched.position.step
        # every micro-batch has one rank with its loss, and zeros: the sum is the same however many ranks there are
        *losses, stop = self.team.sums([*(float(loss) for loss in launched.losses), self.interrupts.stop])
        self.agreed = stop > 0
        self._look(step, losses, launched.bins)
        norm = float(launched.norm)
        if not math.isfinite(norm):
            raise self._diverged(step, f"the gradient's norm is {norm}", [i for b in launched.bins for i in b])
        now = time.perf_counter()
        seconds, self.settled = now - max(self.settled, launched.started), now
        self._time(launched.tokens, seconds)
        self.step = step
        row = {"step": step, "epoch": position.epochs_done, "loss": sum(losses) / launched.loss_tokens,
               "val_loss": None, "lr": launched.lr, "grad_norm": norm, "tokens": launched.tokens,
               "loss_tokens": launched.loss_tokens, "rss_bytes": process_bytes(),
               "tokens_per_s": round(launched.tokens / max(seconds, 1e-9), 2)}
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
        if self.leads:
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
        losses, turns = [0.0] * len(self.val_bins), self._turns(self.val_bins)
        for turn, number in enumerate(turns):
            if number is not None or self.team.sharded:
                loss = float(self.trainee.evaluate(make_batch(self.val, self.val_bins[number or 0])))
                if number is not None:
                    losses[number] = loss
            self._exchange(False)
            if self._stop and turn + 1 < len(turns):
                return None
        return sum(self.team.sums(losses)) / self.val_tokens

    def _keep_best(self, step: int, value: float) -> None:
        if math.isfinite(value) and (self.best is None or value < self.best["val_loss"]):
            if self.team.lead(lambda: self._save_best(step)):
                self.best, self.waited = {"step": step, "val_loss": value}, 0
        else:
            self.waited += 1

    def _save_best(self, step: int) -> bool:
        try:
            self.product.now().save(self.run_folder.best)
        except (OSError, UserError) as error:
            self.console.say(f"The best {self.product.noun} so far (step {step}) cannot be kept: {_why(error)}")
            return False
        return True

    def _out_of_patience(self) -> bool:
        return bool(self.val is not None and 0 < self.settings.early_stop <= self.waited)

    # -- checkpoints ------------------------------------------------------------------------------------

    def _checkpoint(self) -> None:
        """Write one for the current step. A failure is told and costs nothing but itself."""
        self._same_everywhere()
        made = self.team.lead(self._write_checkpoint)
        if made is not None:
            self.saved, self.saved_step = Path(made), self.step
            if self.leads:
                report("saved", made)

    def _write_checkpoint(self) -> str | None:
        if not self._sound():
            return None     # the next step will say so; the last good checkpoint stays the last
        self.metrics.sync()
        info = {"position": self.plan.position(self.step), "best": self.best, "waited": self.waited,
                "pending": self.pending, "run_id": self.run_id, "run": self.run_folder.name,
                "identity": self.identity, "engine": self.engine}
        folder = self.run_folder.checkpoints
        try:
            best = self.run_folder.best if self.best else None
            made = ckpt.save(folder, self.step, self.trainee.state(), info, best)
        except OSError as error:
            kept = f"the one of step {self.saved_step} is kept" if self.saved else "there is none yet"
            self.console.say(f"The checkpoint of step {self.step} cannot be written to {folder}: "
                             f"{_why(error)}; {kept}.")
            return None
        ckpt.prune(folder, self.settings.keep_checkpoints, made)
        return str(made)

    def _same_everywhere(self) -> None:
        """Every rank has made the same update from the same sums: if not, its hardware or software is at fault."""
        if self.team.size == 1:
            return
        state = self.trainee.state()
        check = zlib.crc32(b"".join(zlib.crc32(state[name]).to_bytes(4, "big") for name in sorted(state)))
        if self.team.any(self.team.least(check) != check):
            kept = f" The last good checkpoint is {self.saved}." if self.saved else ""
            text = (f"After step {self.step} the processes' parameters differ, so training stopped: their machines "
                    f"compute differently; use cards of one kind and the same versions everywhere.{kept}")
            raise UserError(text) if self.leads else Elsewhere(text)

    def _sound(self) -> bool:
        """No NaN or infinity in the state; by sums, which carry either on and take no memory."""
        return all(math.isfinite(array.sum(dtype=np.float64)) for array in self.trainee.state().values())

    def _restore(self, found: Checkpoint | None) -> None:
        """Begin where `found` stands. A team begins in rank 0's state, also where there is no checkpoint."""
        if found is not None:
            self._take_up(found)
        if found is not None or self.team.size > 1:
            state = found.tensors() if found is not None and self.leads else self.trainee.state()
            self.trainee.load_state(self.team.spread_arrays(state))

    def _take_up(self, found: Checkpoint) -> None:
        info = found.info
        if found.step > self.plan.total or info["position"] != self.plan.position(found.step):
            raise UserError(f"{found.path} stands at another place in the data than this version of the "
                            f"program puts step {found.step}: it cannot be continued exactly, start anew.")
        self.step, self.best, self.waited = found.step, info["best"], info["waited"]
        self.pending = info["pending"]
        if self.pending is not None and not metrics_file.sound(self.pending, self.step):
            raise UserError(f"{found.path} holds a malformed row of metrics: use another checkpoint.")
        if self.leads:
            report("saved", str(found.path))
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
        self.team.lead(self._write_product)
        return Result(folder.product if self.step > 0 else None, folder.path, stopped, self.step,
                      self.plan.total, self.best, self.saved, self.product.load)

    def _write_product(self) -> None:
        folder = self.run_folder
        if self.step > 0 and self.best is None and not self._sound():   # the last update was too much
            raise UserError(f"After step {self.step} the parameters are no longer finite. "
                            f"{f'The last good state is {self.saved}. ' if self.saved else ''}{self._advice()}")
        if self.step > 0:
            if self.best is None:
                self.product.now().save(folder.product)
            else:
                copy(folder.best, folder.product)
            self._plot()

    def _plot(self) -> None:
        try:
            plot_losses(self.run_folder.metrics, self.run_folder.plot, self.run_folder.name)
        except OSError as error:
            self.console.say(f"The loss plot cannot be written: {_why(error)}.")

    def _diverged(self, step: int, what: str, indexes) -> UserError:
        """The state is that of the step before: keep it, and say what to do."""
        if self.step > self.saved_step:
            self._checkpoint()
        text = self.team.lead(lambda: self._last_words(step, what, indexes))
        return UserError(text) if self.leads else Elsewhere(text)

    def _last_words(self, step: int, what: str, indexes) -> str:
        lines = ", ".join(sorted({self.train.where(i) for i in indexes}))
        if len(lines) > 300:
            lines = lines[:300] + "…"
        kept = ""
        if self.step > 0 and self._sound():
            self.product.now().save(self.run_folder.product)
            kept = f"What was learned before is in {self.run_folder.product} ({self.product.again}). "
        elif self.saved:
            kept = f"The last good state is {self.saved}. "
        return f"Step {step}: {what}, so training stopped before applying it ({lines}). {kept}{self._advice()}"

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


def _loss_tokens(data, indexes) -> int:
    """Tokens with loss in these examples (an example's first token is never one)."""
    return sum(int(np.count_nonzero(data.loss[data.offsets[i] + 1:data.offsets[i + 1]])) for i in indexes)


def copy(source: Path, target: Path) -> None:
    with open(source, "rb") as file, atomic_write(target) as out:
        shutil.copyfileobj(file, out, CHUNK)


def _why(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _words(engine: dict) -> str:
    return ", ".join(f"{name} {value}" for name, value in sorted(engine.items()))[:200] or "nothing known"
