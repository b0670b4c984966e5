"""The loop: steps of micro-batches, evaluations, checkpoints; stops early, on request, or at a NaN.

With a process group (see process_group.py) every rank runs this loop and takes its part of each step's micro-batches
(see turns.py). What decides where the loop goes (losses, requests to stop) is exchanged before it decides, and rank 0
alone touches the disk, so all go one way.
"""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Callable
from typing import Any

from anytune.errors import UserError
from anytune.files import copy
from anytune.train import metrics as metrics_file
from anytune.train.callbacks import Calls
from anytune.train.checkpoint import Checkpoint
from anytune.train.interrupt import Interrupts
from anytune.train.checkpoint_manager import CheckpointManager
from anytune.train.ending import Ending
from anytune.train.optimizer_step import Diverged, InFlightStep, OptimizerStep
from anytune.train.outcome import Result
from anytune.train.throughput import Throughput
from anytune.train.steps import Steps, Position
from anytune.train.progress import Console, duration
from anytune.train.run_folder import RunFolder, lock
from anytune.train.schedule import Schedule
from anytune.train.settings import TrainSettings
from anytune.train.sinks import Sinks
from anytune.train.turns import Turns
from anytune.distributed.process_group import SingleProcess
from anytune.distributed.failure import PeerError, report
from anytune.train.validation import Validation


class Trainer:
    """One run of a trainee over a data set.

    trainee      computes: accumulate, evaluate, update, state, load_state (see anytune.model)
    train, val   Dataset; val may be None
    run          the run's folder (see run_folder.py); run_id, identity and engine go into its checkpoints
    resume       a verified checkpoint of this identity, or None
    calls        told of each step (after its row is written), evaluation and checkpoint; see callbacks.py
    watch        called with the trainee and the step before the first step and at each checkpoint; the steps wait
    product      what is made of it: now().save(path), load, noun, again (see product.py)
    process_group         the processes that train together, this one among them
    """

    def __init__(
        self,
        trainee,
        train,
        val,
        settings: TrainSettings,
        run: RunFolder,
        *,
        run_id: str = "",
        identity: dict | None = None,
        engine: dict | None = None,
        resume: Checkpoint | None = None,
        console: Console | None = None,
        calls: Calls | None = None,
        watch: Callable[[Any, int], None] | None = None,
        steps: Steps | None = None,
        product: Any = None,
        process_group: SingleProcess | None = None,
    ):
        self.process_group = process_group or SingleProcess()
        self.leads = self.process_group.rank == 0
        self.trainee, self.train, self.settings = trainee, train, settings
        self.run_folder, self.run_id = run, run_id
        self.identity, self.engine = identity or {}, engine or {}
        self.console, self.calls, self.watch = console or Console(quiet=True), calls or Calls(), watch
        self.steps = steps or Steps(train, settings)
        self.schedule = Schedule.of(settings, self.steps.total)
        self.product = product
        self.resume = resume
        self.step = 0
        self.pending: dict | None = None  # a row whose step is done and whose evaluation is not
        self.validation = Validation(trainee, val, settings, self.process_group)
        self.checkpoints = CheckpointManager(trainee, run, self.process_group, self.console.say, settings.kept)
        self.throughput = Throughput(self.steps.tokens)
        self.interrupts = Interrupts(quiet=not self.leads)
        self.turns = Turns(self.process_group, self.interrupts)
        self.optimizer_step = OptimizerStep(trainee, train, settings, self.schedule, self.turns)
        self.ending = Ending(product, run, self.checkpoints, settings, self.console)
        self.steps_in_flight = getattr(trainee, "steps_in_flight", 0)  # steps that the device may be behind

    # -- the run ----------------------------------------------------------------------------------------

    def run(self) -> Result:
        """Train to the end, or until stopped. Raises UserError at a NaN, having kept the last good state."""
        with contextlib.ExitStack() as held:
            self.process_group.on_rank0(lambda: self._open(held))
            held.enter_context(self.interrupts)
            if self.resume is not None:
                self._take_up(self.resume)
            self.checkpoints.restore(self.resume)
            self.process_group.on_rank0(lambda: self._record(held))
            self._show()
            try:
                stopped = self._loop()
            except Diverged as error:
                raise self._diverged(error) from None
            return self._finish(stopped)

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
        queue: collections.deque[InFlightStep] = collections.deque()
        for position, bins in self.steps.after(self.step):
            if self.validation.out_of_patience:
                return "early"
            launched = self.optimizer_step.launch(position, bins)
            if launched is not None:
                queue.append(launched)
            # a device may lag behind by a step, but not where the step's outcome decides what comes next
            kept = 0 if launched is None or self.turns.stop or self._decides(position) else self.steps_in_flight
            while len(queue) > kept:
                if not self._settle(queue.popleft()):
                    return "interrupted"
            if launched is None or (self.turns.stop and self.step < self.steps.total):
                return "interrupted"
        return "finished"

    def _decides(self, position: Position) -> bool:
        """Whether something happens after this step that needs its outcome: evaluation, checkpoint, the end."""
        return (
            position.step == self.steps.total
            or self.validation.due(position, self.steps.total)
            or self._saves(position.step)
        )

    def _saves(self, step: int) -> bool:
        every = self.settings.checkpoint_save_steps
        return bool(every and step % every == 0 and step < self.steps.total)

    def _settle(self, launched: InFlightStep) -> bool:
        """Take in the outcome of a step, and do what is due after it. False: interrupted in its evaluation."""
        row = self.optimizer_step.settle(launched)
        if self.throughput.step(launched.tokens, row["seconds"]) and self.throughput.left > 60:
            rate, left = self.throughput.rate, duration(self.throughput.left)
            self.console.say(f"First step: {rate:,.0f} tokens/s, so about {left} to go.")
        self.step = row["step"]
        if not self._complete(row, self.validation.due(launched.position, self.steps.total)):
            return False
        if self._saves(self.step):
            self._save()
        return True

    def _save(self) -> None:
        self.checkpoints.save(self.step, self._info)
        self._show()
        if self.checkpoints.saved_step == self.step and self.checkpoints.saved is not None:
            self._tell("on_checkpoint", self.checkpoints.saved)

    def _show(self) -> None:
        """Let the caller look at what is trained. Alone: a sharded base answers only if all take part."""
        if self.watch is not None and self.process_group.size == 1:
            self.watch(self.trainee, self.step)

    def _complete(self, row: dict, evaluate: bool = True) -> bool:
        """What follows a step: evaluation, the row, the progress line. False: interrupted in evaluation."""
        if evaluate:
            value = self.validation.measure(self.turns.of(self.validation.bins), self._asked)
            if value is None:
                self.pending = row
                return False
            row = dict(row, val_loss=value)
            self.validation.take(
                row["step"], value, lambda: self.process_group.on_rank0(lambda: self.ending.save_best(row["step"]))
            )
        self.pending = None
        if self.leads:
            self.metrics.append(row)
            self.sinks(row)
            best = self.validation.best
            self.console.step(row, self.steps.total, self.throughput.left, best and best["val_loss"])
            self._tell("on_step", row)
            if row["val_loss"] is not None:
                self._tell("on_evaluate", row)
        return True

    def _asked(self) -> bool:
        """Whether anyone was asked to stop."""
        self.turns.exchange()
        return self.turns.stop

    def _tell(self, event: str, what: Any) -> None:
        """Tell the caller, who may ask for a stop: it is then as if Ctrl-C had been pressed."""
        if self.leads and self.calls(event, what):  # which may have set `stop` itself, by a signal
            self.interrupts.stop = True

    # -- keeping ----------------------------------------------------------------------------------------

    def _info(self) -> dict:
        """What a checkpoint of the current step holds besides the state."""
        self.metrics.sync()
        return {
            "position": self.steps.position(self.step),
            "best": self.validation.best,
            "waited": self.validation.waited,
            "pending": self.pending,
            "run_id": self.run_id,
            "run": self.run_folder.name,
            "identity": self.identity,
            "engine": self.engine,
        }

    def _take_up(self, found: Checkpoint) -> None:
        info = found.info
        if found.step > self.steps.total or info["position"] != self.steps.position(found.step):
            raise UserError(
                f"{found.path} has a different data position for step {found.step} than this version: it cannot be "
                "continued exactly, start over."
            )
        self.step, self.pending = found.step, info["pending"]
        self.validation.best, self.validation.waited = info["best"], info["waited"]
        if self.pending is not None and not metrics_file.sound(self.pending, self.step):
            raise UserError(f"{found.path} holds a malformed row of metrics: use another checkpoint.")
        if self.leads:
            report("saved", str(found.path))
            if found.best is not None:
                copy(found.best, self.run_folder.best)
        if info["engine"] != self.engine:
            self.console.say(
                f"The checkpoint was made with {_words(info['engine'])}, and this is "
                f"{_words(self.engine)}: as good, but not bit for bit what it would have been."
            )
        self.checkpoints.saved, self.checkpoints.saved_step = found.path, found.step - bool(self.pending)
        self.throughput.seen = round(self.steps.tokens * self.step / self.steps.total)
        self.console.say(f"Continuing after step {self.step} of {self.steps.total} from {found.path}")

    # -- ends -------------------------------------------------------------------------------------------

    def _finish(self, stopped: str) -> Result:
        folder, checkpoints = self.run_folder, self.checkpoints
        if stopped == "interrupted" and self.process_group.broadcast(self.calls.asked or self.calls.error is not None):
            stopped = "callback"
        if self.step > 0 and (checkpoints.saved_step != self.step or self.pending):
            self._save()
        self.process_group.on_rank0(lambda: self.ending.write(self.step, self.validation.best))
        return Result(
            folder.product if self.step > 0 else None,
            folder.path,
            stopped,
            self.step,
            self.steps.total,
            self.validation.best,
            checkpoints.saved,
            self.product.load,
        )

    def _diverged(self, error: Diverged) -> UserError:
        """The state is that of the step before: keep it, and say what to do."""
        if self.step > self.checkpoints.saved_step:
            self.checkpoints.save(self.step, self._info)
        places = {self.train.where(i) for i in error.examples}
        text = self.process_group.on_rank0(lambda: self.ending.diverged(error.step, self.step, error.what, places))
        return UserError(text) if self.leads else PeerError(text)


def _words(identity: dict) -> str:
    return ", ".join(f"{name} {value}" for name, value in sorted(identity.items()))[:200] or "nothing known"
