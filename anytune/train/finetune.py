"""The whole job: model and data in, adapter or model and run folder out. `anytune train` and anytune.finetune call it.

train() returns a Run for every orderly end; Run.exit_code tells which. (finetune() for Python callers is in api.py.)
Started by torchrun (or anytune train --gpus), the processes train together: see process_group.py.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anytune import __version__
from anytune.adapter import peft
from anytune.adapter.adapter import Adapter
from anytune.engine.check import prove
from anytune.engine.probe import cores
from anytune.errors import UserError
from anytune.files import check_output, spare_inputs
from anytune.text.given import Rows, sources
from anytune.text.reading import check_once, identity, reads_once
from anytune.train import checkpoint as ckpt
from anytune.train import defaults, preflight
from anytune.train.callbacks import Calls
from anytune.train.checkpoint import Checkpoint
from anytune.train.data import longest_of, read_sets
from anytune.train.device import Place
from anytune.train.outcome import Result
from anytune.train.plan import Plan
from anytune.train.product import AdapterProduct, ModelProduct, read_adapter
from anytune.train.progress import Console, size
from anytune.train.resume import open_run, recorded, recorded_engine
from anytune.train.run import FILES, SCHEMA, RunFolder
from anytune.train.settings import FIELDS, FULL_RATE, TrainSettings
from anytune.distributed.process_group import PeerError, WorkerLost, SingleProcess, join, launched, local_device, places
from anytune.train.trainer import Trainer

if TYPE_CHECKING:
    from anytune.model import Full, Lora, Model


@dataclasses.dataclass(repr=False)
class Run(Result):
    """A Result (see trainer.py) and where the adapter or model was put: output (None: only in the run's folder)."""

    output: Path | None = None

    def __repr__(self) -> str:
        best = f", best val_loss {self.best['val_loss']:.4f} at {self.best['step']}" if self.best else ""
        return f"<Run {self.run_dir}: {self.stopped} at step {self.step} of {self.total_steps}{best}, {self.path}>"

    @property
    def exit_code(self) -> int:
        return 130 if self.stopped == "interrupted" else 0


def train(
    model: Model | str | os.PathLike,
    data,
    *,
    lora: Lora | None = None,
    adapter: Adapter | str | os.PathLike | None = None,
    full: Full | None = None,
    output: str | os.PathLike | None = None,
    output_type: str | None = "F16",
    val_file: str | os.PathLike | None = None,
    val_split: float = 0.0,
    loss: str = "auto",
    assistant_loss_only: bool = False,
    chat_template: str | os.PathLike | None = None,
    format: str = "auto",
    columns: dict[str, str] | None = None,
    overflow: str | None = None,
    device: str = "auto",
    threads: int | None = None,
    memory: int | None = None,
    shard: bool = False,
    quiet: bool = False,
    callbacks: Any = None,
    progress: Callable[[dict], Any] | None = None,
    watch: Callable[[Any, int], None] | None = None,
    settings: TrainSettings | None = None,
    unset: Collection[str] = (),
    force: bool = True,
    words: Callable[[str], str] | None = None,
    **hyper: Any,
) -> Run:
    """Build the data set, train, save. Everything is written under the run's folder (see run.py).

    model          a loaded Model, or a GGUF file's path (loaded with device, threads, memory)
    data           a path or a list of paths (-f), or an iterable of dicts (see anytune.text.given)
    lora           what to train; None: Lora() with the run's seed
    adapter        an adapter to continue from: an Adapter, or the path of one (--lora). Rank, alpha, modules and,
                   unless chat_template is given, the template are its own
    full           train these of the model's own tensors instead of an adapter
    output         where the result goes besides the run's folder: name.gguf, or (of an adapter) a peft folder's name
    output_type    of a model: a type as `anytune quantize` has them, None: each tensor's own
    val_file       validation data, or a list (--val-file); val_split: or a fraction of `data` (--val-split)
    loss           auto: of chats the assistant's words, of pairs the completion, running text whole; all: every token;
                   assistant: as auto, but running text is refused. assistant_loss_only=True is loss="assistant"
    chat_template (a file), format, columns, overflow: see anytune.text.build_dataset
    memory         bytes; threads: None: the cores that there are
    shard          with several processes: each holds a slice of the base, whatever would fit
    quiet          nothing on stderr (the log is kept); words: what is said goes through it
    callbacks      see callbacks.py; progress: called with each row of metrics
    watch          called with the trainee and the step, before the first step and at each checkpoint
    unset          names of settings out of defaults.OPEN that are chosen by the sizes of data and model
    force          replace an output that exists
    settings       a TrainSettings; or its fields as keywords: epochs=2, lr=1e-4, resume_from="auto", …

    With torchrun's environment this process joins the others; all must be given the same. Process 0 writes the files,
    says what is to be said and calls progress; `device` "cuda" is each one's own.

    Returns a Run. Raises UserError for whatever the caller can mend, WorkerLost if another process of the process
    group is gone.
    """
    settings = _settings(settings, hyper)
    calls = Calls(callbacks, progress)
    data, val_file = sources(data), sources(val_file) if val_file is not None else []
    _check_files(data, val_file, val_split, chat_template, settings)
    check_outputs(
        output,
        settings,
        getattr(getattr(model, "gguf", None), "path", model),
        data,
        val_file,
        None if isinstance(adapter, Adapter) else adapter,
        chat_template,
        force,
    )
    if full is not None and (lora is not None or adapter is not None):
        raise UserError("Train an adapter or the model itself (--full), not both in one run.")
    if full is not None and shard:
        raise UserError("--shard shares out a frozen base, and with --full the base is what is trained: leave it out.")
    model = _load(model, local_device(device), threads, memory)
    process_group = _join(model.engine, shard)
    console = Console(quiet=quiet or process_group.rank > 0, words=words)
    try:
        adapter = _adapter(adapter, model, lora, console)
        template = _template(model, chat_template, adapter, console)
        if assistant_loss_only and loss == "all":
            raise UserError('assistant_loss_only and loss="all" ask for opposite things: give one of them.')
        options = {
            "loss": "assistant" if assistant_loss_only else loss,
            "format": format,
            "columns": columns,
            "overflow": overflow,
        }
        record = {
            "model": model.gguf.path,
            "data": list(map(str, data)),
            "val_file": list(map(str, val_file)) or None,
            "val_split": val_split,
            "chat_template": chat_template,
            "output": output,
            "output_type": output_type,
            **options,
        }
        candidates = functools.partial(_candidates, model, settings, unset, full is not None)
        sets, template = read_sets(
            model, template, data, val_file, val_split, options, settings, candidates, process_group, console
        )
        possible = candidates(sets)
        settings = possible[process_group.on_rank0(lambda: recorded(possible, _given(model, template, sets)))]
        _tell_defaults(settings, unset, sets[0].tokens, model, console)
        job = _Job(
            model,
            template,
            sets,
            settings,
            console,
            Path(output) if output is not None else None,
            process_group,
            full is not None,
        )
        try:
            made = job.run(
                lambda job: _adapter_of(job, lora, adapter) if full is None else _model_of(job, full, output_type),
                threads,
                record,
                calls,
                watch,
            )
        finally:
            if job.place is not None:
                job.place.leave()
        process_group.close()
        return made
    except BaseException:
        process_group.abort()
        raise
    finally:
        if process_group.sharded:
            model.hold("blocks")  # whole again, for whatever comes next
        model.engine.process_group = None
        console.close()


class _Job:
    """What is known once the data is read: from here on it is one straight line to the adapter."""

    def __init__(
        self,
        model,
        template,
        sets,
        settings: TrainSettings,
        console: Console,
        output: Path | None,
        process_group: SingleProcess,
        full: bool,
    ):
        self.model, self.template, self.console, self.output, self.process_group = (
            model,
            template,
            console,
            output,
            process_group,
        )
        self.full, self.place = full, None
        self.train_set, self.val_set = sets
        self.longest = longest_of(sets)
        self.settings, notes = settings.fitted(self.longest)
        for note in notes:
            console.say(note)
        self.plan = Plan(self.train_set, self.settings)
        if few := defaults.warning(self.plan.total, self.settings):
            console.say(few)
        idle = process_group.size - self.plan.per_step
        if idle > 0:
            console.say(
                f"A step is {self.plan.per_step} × {self.settings.ubatch} tokens, so {idle} of {process_group.size} "
                f"processes have nothing to do: raise -b to {process_group.size * self.settings.ubatch} or more, or "
                "lower -ub."
            )

    def run(self, start, threads: int | None, record: dict, calls: Calls, watch) -> Run:
        """start(self) -> (trainee, product)."""
        settings, say, process_group = self.settings, self.console.say, self.process_group
        identity = _given(self.model, self.template, (self.train_set, self.val_set))(settings)
        _same_job(
            process_group,
            identity | {"settings": identity["settings"] | _rhythm(settings, self.model.engine, process_group)},
        )
        self._start(start, threads, process_group.on_rank0(lambda: recorded_engine(settings, identity)))
        engine = self.model.engine.identity() | ({"processes": process_group.size} if process_group.size > 1 else {})
        if process_group.size > 1:
            say(f"Processes: {process_group.size}, which share the micro-batches of each step")
        say(
            preflight.report(
                self.trainee,
                self.plan,
                self.val_set,
                settings,
                process_group.size * self.model.engine.flops_per_second(),
            )
        )
        process_group.on_rank0(self._try_places)
        identity["trainee"] = _plain(self.trainee.spec)
        _same_job(process_group, identity)
        record = _plain(
            record
            | {
                "schema": SCHEMA,
                "anytune": __version__,
                "settings": dataclasses.asdict(settings),
                "total_steps": self.plan.total,
                "data_report": self.train_set.report,
            }
        )
        run, run_id, found = _open(process_group, settings, self.model.gguf.path.stem, identity, record, say)
        run.file = self.product.file
        say(f"Run folder: {run.path}")
        if self.output is None:
            process_group.on_rank0(lambda: say(f"Output: {self.product.trial(run.product)}"))
        trainer = Trainer(
            self.trainee,
            self.train_set,
            self.val_set,
            settings,
            run,
            run_id=run_id,
            identity=identity,
            engine=engine,
            resume=found,
            console=self.console,
            calls=calls,
            watch=watch,
            plan=self.plan,
            product=self.product,
            process_group=process_group,
        )
        try:
            result = trainer.run()
        except WorkerLost as error:
            kept = (
                f"the last checkpoint is {trainer.checkpoints.saved}, and the same command with --resume-from auto "
                "continues from it, with any number of processes"
                if trainer.checkpoints.saved
                else "there is no checkpoint yet"
            )
            lost = WorkerLost(f"The run in {run.path} had to end, as {error}; {kept}.")
            if not launched():  # said at once: torchrun is about to end this process too
                say(str(lost))
                lost.told = self.console.stream is not None
            raise lost from None
        except OSError as error:
            kept = f"; the last good checkpoint is {trainer.checkpoints.saved}" if trainer.checkpoints.saved else ""
            raise UserError(f"The run in {run.path} had to end: {error}{kept}.") from None
        except RuntimeError as error:
            what = self.model.engine.explain(error, self.trainee.estimate.peak_bytes)
            if what is None:
                raise
            raise UserError(f"The run in {run.path} had to end. {what}{_kept(trainer)}") from None
        peak = self.model.engine.peak()
        if peak:
            say(f"Memory: {size(peak)} at most, {size(self.trainee.estimate.peak_bytes)} were estimated")
        self.model.engine.release()
        if self.output is not None and result.path is not None:
            process_group.on_rank0(lambda: self._deliver(result.path))
        if result.timing is not None:
            say(result.timing.text())
        say(_ending(result, self.output, self.product))
        process_group.on_rank0(lambda: _tell_room(run, result, say))
        if calls.error is not None:
            raise calls.error
        parts = {field.name: getattr(result, field.name) for field in dataclasses.fields(Result)}
        return Run(**parts, output=self.output)

    def _start(self, start, threads: int | None, recorded: dict) -> None:
        """Make trainee and product on the engine that trains."""
        self.place = Place(self.model, recorded, self.full)
        _share_cores(self.model.engine, threads, self.process_group)
        try:
            self.trainee, self.product = start(self)
        except UserError as error:
            self.place.retreat(error)
            _share_cores(self.model.engine, threads, self.process_group)
            self.trainee, self.product = start(self)
        self.console.say(self.place.sentence())

    def _try_places(self) -> None:
        """Is there room on the disks, and can the result be saved where it is wanted?"""
        home = Path(self.settings.run_dir or ".")
        folders = [home, Path(self.settings.checkpoint_save_dir or home)]
        preflight.check_disk(self.trainee, self.product, folders, self.settings, self.plan.total, self.output)
        if self.output is not None:
            self.console.say(f"Output: {self.product.trial(self.output)}")

    def _deliver(self, made: Path) -> None:
        try:
            self.product.deliver(made, self.output)
        except OSError as error:
            raise UserError(
                f"The {self.product.noun} cannot be written to {self.output}: {error.strerror or error}; "
                f"it is kept as {made}."
            ) from None

    @property
    def template_source(self) -> str | None:
        """The template that the data went through; None: it was plain text, and is served as such."""
        chats = self.train_set.report.get("chats", 1)
        return getattr(self.template, "source", None) if chats else None


def _given(model, template, sets) -> Callable[[TrainSettings], dict]:
    """What is known of a run's identity once its data is read, as a function of its (fitted) settings."""
    train_set, val_set = sets
    known = {
        "base": model.gguf.sha256(),
        "data": train_set.fingerprint,
        "validation": val_set.fingerprint if val_set is not None else None,
    }
    if template.tells_date:
        known["date"] = template.today.isoformat()
    return lambda settings: _plain(known | {"settings": settings.fitted(longest_of(sets))[0].exact()})


def _candidates(model, settings: TrainSettings, unset: Collection[str], full: bool, sets) -> list[TrainSettings]:
    """The settings that a run of these sets may have: what is left open chosen by their size, or as versions before
    had it, whose runs go on."""
    if not unset:
        return [settings]
    tokens, parameters = sets[0].tokens, _parameters(model)
    chosen = defaults.choose(settings, unset, tokens, longest_of(sets), parameters, full)
    if full and "lr" in unset:
        settings = dataclasses.replace(settings, lr=max(FULL_RATE, settings.lr_min))
    return [chosen, settings]


def _parameters(model) -> int:
    return sum(info.n_elements for info in model.gguf.tensors.values())


def _tell_defaults(settings: TrainSettings, unset: Collection[str], tokens: int, model, console: Console) -> None:
    if said := defaults.sentence(settings, unset, tokens, _parameters(model)):
        console.say(said)


def _settings(settings: TrainSettings | None, hyper: dict) -> TrainSettings:
    unknown = sorted(set(hyper) - set(FIELDS))
    if unknown:
        raise UserError(f"finetune() has no option {unknown[0]!r}; training takes {', '.join(FIELDS)}.")
    return dataclasses.replace(settings, **hyper) if settings else TrainSettings(**hyper)


def _check_files(data, val_file, val_split: float, chat_template, settings: TrainSettings) -> None:
    if val_file and val_split:
        raise UserError("Give --val-file or --val-split, not both.")
    files, held = list(data), list(val_file)
    trained = set(map(identity, files))
    both = next((path for path in held if identity(path) in trained), None)
    if both is not None:
        raise UserError(f"{both} is given for training and for validation: --val-split parts one file.")
    check_pipes([*files, *held, chat_template], int(places().get("WORLD_SIZE", 1)))
    if settings.early_stop and not (val_file or val_split):
        raise UserError("--early-stop needs a validation set: give --val-file or --val-split.")


def check_pipes(paths, processes: int) -> None:
    """Raise UserError if a pipe would be read twice, by this process or by several. Paths that are None count for
    nothing."""
    paths = [path for path in paths if path is not None]
    check_once(paths)
    if processes > 1 and (pipe := next(filter(reads_once, paths), None)) is not None:
        raise UserError(
            f"{pipe} can be read only once, and {processes} processes read the data: write it to a file first."
        )


def check_outputs(
    output, settings: TrainSettings, model, data, val_file, adapter, chat_template, force: bool = True
) -> None:
    """Raise UserError if the result, or a file of the run's folder, would replace what is read, or the result what
    exists (unless force, or a run goes on, which may have written it). All are paths, or None; data and val_file may be
    lists."""
    written = [output]
    if output is not None and Path(output).suffix.lower() != ".gguf":
        written += [Path(output) / name for name in peft.FILES]
    resumed = Path(settings.resume_from or "auto").absolute()  # a checkpoint, or the folder of a run
    checkpoint = resumed if (resumed / ckpt.INFO).exists() else None
    folder = checkpoint.parent.parent if checkpoint else resumed
    # beside --checkpoint-save-dir there is no run's folder
    home = settings.run_dir or (folder if settings.resume_from and (folder / "settings.json").exists() else None)
    written += [Path(home) / name for name in FILES] if home else []
    spare_inputs(
        written,
        [
            ("the model", model),
            ("the adapter to continue from", adapter),
            ("the chat template", chat_template),
            *(("the data", path) for path in sources(data) if not isinstance(path, Rows)),
            *(("the validation data", path) for path in sources(val_file or ()) if not isinstance(path, Rows)),
            ("the checkpoint", checkpoint),
        ],
    )
    if output is not None:
        check_output(output, force or settings.resume_from is not None)


def _load(model, device, threads, memory):
    if not isinstance(model, (str, os.PathLike)):
        return model
    from anytune.model import load

    return load(model, device=device, threads=threads, memory=memory)


def _join(engine, shard: bool) -> SingleProcess:
    """The process group of this process, made known to its engine. Raises UserError."""
    device, here = getattr(engine, "device", None), places().get("LOCAL_RANK")
    if shard and here is None:
        raise UserError("--shard shares the base out between processes: start several with --gpus N or torchrun.")
    if shard and (device is None or device.type not in ("cpu", "cuda")):
        raise UserError(f"--shard is for CUDA and ROCm (and cpu-torch), not for the {engine.name} engine.")
    if here is not None and device is not None and device.type == "cuda" and device.index != int(here):
        raise UserError(
            f"this process has its model on {device}, and as number {here} of its machine it should take "
            f"that card: load it with device='cuda:{here}', or hand over the file's path."
        )
    process_group = join(device)
    process_group.shard = shard
    if process_group.size > 1:
        prove(engine, True)  # alone: its known answers hold for one process
        engine.process_group = process_group
        if hasattr(engine, "shards"):
            engine.shards = process_group.size
    return process_group


def _same_job(process_group: SingleProcess, identity: dict) -> None:
    """Raise UserError where this process was given something else than process 0."""
    other = ckpt.differences(process_group.broadcast(identity), identity)
    wrong = process_group.any(bool(other))
    if other:
        raise UserError(
            f"process {process_group.rank} was given something else than process 0: "
            f"{'; '.join(other).replace(' then, ', ' there, ').replace(' now)', ' here)')}."
        )
    if wrong:
        raise PeerError("another process was given something else than process 0")


def _rhythm(settings: TrainSettings, engine, process_group: SingleProcess) -> dict:
    """What a resumed run may change, but processes must share, since it decides when they meet and in which numbers."""
    return {
        "checkpoint_save_steps": settings.checkpoint_save_steps,
        "--shard": process_group.shard,
        "--device": engine.name,
        "--dtype": engine.identity().get("dtype"),
    }


def _open(process_group: SingleProcess, settings, name: str, identity: dict, record: dict, say):
    """open_run() by process 0, for all."""

    def work():
        run, run_id, found = open_run(settings, name, identity, record, say)
        return [str(run.path), str(run.checkpoints), run_id, found and [str(found.path), found.step, found.info]]

    path, checkpoints, run_id, found = process_group.on_rank0(work)
    return (
        RunFolder(Path(path), Path(checkpoints)),
        run_id,
        Checkpoint(Path(found[0]), found[1], found[2]) if found else None,
    )


def _kept(trainer: Trainer) -> str:
    return (
        f" The last good checkpoint is {trainer.checkpoints.saved}."
        if trainer.checkpoints.saved
        else " There is no checkpoint yet."
    )


def _share_cores(engine, asked: int | None, process_group: SingleProcess) -> None:
    """Processes of one machine share out its cores, unless the caller asked for a number of threads."""
    workers = getattr(engine, "workers", None)
    if workers is not None and asked is None and process_group.size > 1:
        engine.use_threads(min(workers.count, max(1, cores() // process_group.local_size)))


def _adapter(adapter, model, lora: Lora | None, console: Console):
    """The adapter to continue from, read where it is a path; None without one. Raises UserError for a lora beside it
    that asks for something else."""
    if isinstance(adapter, (str, os.PathLike)):
        adapter = read_adapter(Path(adapter), model.gguf)
        if (remark := adapter.other_base(model.gguf)) is not None:
            console.say(f"Note: {remark}")
    if adapter is not None and lora is not None:
        from anytune.model.lora import refuse_beside

        refuse_beside(lora, adapter)
    return adapter


def _template(model, file, adapter, console: Console):
    """The template that the data goes through: the file's, else the one that the adapter was trained with, else the
    model's."""
    from anytune.text import ChatTemplate

    trained = adapter.chat_template if adapter is not None else None
    if file is not None:
        template = ChatTemplate.for_model(model.gguf, model.tokenizer, file=file)
        if trained and trained != template.source:
            console.say(
                f"Note: the adapter was trained with another chat template than {file}, which is used from now on"
            )
        return template
    if trained is None or trained == model.template.source:
        return model.template
    console.say("The chat template is the one that the adapter was trained with, which is not the model's own")
    return ChatTemplate(trained, model.tokenizer, origin="adapter")


def _adapter_of(job: _Job, lora, adapter):
    from anytune.model import Lora

    model, settings = job.model, job.settings
    trainee = model.trainee(
        (lora or Lora()).seeded(settings.seed), adapter=adapter, ubatch=settings.ubatch, context=job.longest
    )
    return trainee, AdapterProduct(trainee, model.gguf, job.template_source)


def _model_of(job: _Job, full, kind: str | None):
    trainee = job.model.full_trainee(full, ubatch=job.settings.ubatch, context=job.longest)
    return trainee, ModelProduct(trainee, job.model.gguf, job.template_source, kind)


ROOM = 100 << 20  # bytes of a run's folder that are worth a word


def _tell_room(run: RunFolder, result: Result, say: Callable[[str], None]) -> None:
    """Say what a finished run leaves on the disk, if that is much."""
    from anytune.train.folders import taken

    inside, whole = taken(run.checkpoints), taken(run.path)
    if result.stopped not in ("finished", "early") or max(inside, whole) < ROOM:
        return
    own = run.checkpoints.parent.resolve() == run.path.resolve()
    stopped = "--stopped " if result.stopped == "early" else ""
    say(
        f"{run.path} takes {size(whole)}, {size(inside)} of it checkpoints: `anytune runs clean {stopped}{run.path}` "
        "removes them"
        if own
        else f"The checkpoints in {run.checkpoints} take {size(inside)}: remove them if you do not mean to continue"
    )


def _ending(result: Result, output: Path | None, product) -> str:
    steps = f"after step {result.step} of {result.total_steps}"
    head = {
        "finished": f"Finished {steps}.",
        "early": f"Stopped {steps}: validation was no longer better.",
        "interrupted": f"Interrupted {steps}.",
        "callback": f"Stopped {steps}: a callback asked for it.",
    }[result.stopped]
    parts = [head]
    if result.best:
        parts.append(f"Best validation loss {result.best['val_loss']:.4f} at step {result.best['step']}.")
    if result.path is not None:
        parts.append(f"{product.noun.capitalize()}: {output or result.path}")
    if result.stopped in ("interrupted", "callback"):
        where = result.checkpoint or "auto"
        parts.append(
            f"Continue with the same command and --resume-from {where}"
            if result.checkpoint
            else "Nothing had been learned yet, so nothing was saved."
        )
    return "\n".join(parts)


def _plain(data: dict) -> dict:
    """The same as JSON has it, so that what is read back compares equal."""
    return json.loads(json.dumps(data, default=str))
