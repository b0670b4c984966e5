"""What the commands of anytune adapt share: options of data, fit and output, and what they ask for."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from anytune.cli.adapt import Bars
from anytune.cli.dataset import COLUMN, FORMAT, KEYS, columns_from
from anytune.cli.opening import data_files, load_adapter, load_model, model_path, read_text, template_file, text_file
from anytune.cli.options import force_option, forced, json_option, template_option
from anytune.cli.say import print_json
from anytune.files import spare_inputs

if TYPE_CHECKING:
    from anytune.adapt.data import Reading
    from anytune.adapt.ending import Outputs, Result
    from anytune.adapt.job import Settings
    from anytune.model import Model


DATA = (
    click.option(
        "-f",
        "--file",
        "files",
        multiple=True,
        required=True,
        metavar="DATA",
        help="Data in any format that `anytune train` accepts. May be repeated.",
    ),
    FORMAT,
    template_option,
    click.option(
        "-c",
        "--ctx-size",
        "--context",
        "context",
        type=click.IntRange(2),
        default=512,
        show_default=True,
        help="Tokens of the longest example; longer chats are dropped.",
    ),
    click.option("--val-file", multiple=True, metavar="FILE", help="Data to evaluate the result on."),
    click.option(
        "--val-split",
        type=click.FloatRange(0, 1, max_open=True),
        default=0.2,
        show_default=True,
        help="Fraction of the data held out to evaluate the result.",
    ),
    click.option(
        "-s", "--seed", type=click.IntRange(0), default=42, show_default=True, help="Seed of the held-out split."
    ),
    *(click.option(f"--{name}-key", type=COLUMN, metavar="COLUMN", help=f"Column with the {name}.") for name in KEYS),
)
FIT = (
    click.option(
        "--ridge",
        type=click.FloatRange(0),
        metavar="SHARE",
        help="Ridge of the regressions, as a fraction of the Gram matrix's mean diagonal.",
    ),
    click.option(
        "--guard",
        type=click.FloatRange(0),
        metavar="WEIGHT",
        help="Weight of ordinary text on which the model should not change.",
    ),
    click.option("--guard-text", metavar="FILE", help="The ordinary text, instead of a short built-in one."),
    click.option(
        "--drift-text", metavar="FILE", help="Ordinary text to measure the drift on, instead of a short built-in one."
    ),
    click.option(
        "-b",
        "--batch-size",
        "batch",
        type=click.IntRange(1),
        default=4096,
        show_default=True,
        metavar="N",
        help="Tokens run at once.",
    ),
    click.option(
        "--lora-alpha",
        "alpha",
        type=click.FloatRange(0, min_open=True),
        metavar="ALPHA",
        help="The adapter is scaled by alpha / rank.  [default: the rank]",
    ),
    click.option("--resume", is_flag=True, help="Continue from what an interrupted run left beside the output."),
)
OUTPUT = (
    click.option(
        "-o",
        "--output",
        required=True,
        metavar="PATH",
        help="The adapter: NAME.gguf for llama.cpp; any other name gives a peft folder.",
    ),
    click.option("--no-verify", is_flag=True, help="Do not verify the result in llama.cpp."),
    click.option("--peft", metavar="FOLDER", help="Also write the adapter as a peft folder."),
    click.option(
        "--intermediate",
        metavar="FOLDER",
        help="Keep intermediate results: sums as .npz, adapters as GGUF and as peft folders.",
    ),
)
TEACHERS = (
    click.option("--system-file", metavar="FILE", help="A text that the teacher sees as the system message."),
    click.option(
        "--shots",
        multiple=True,
        metavar="FILE",
        help="Conversations that the teacher sees before each example. May be repeated.",
    ),
    click.option("--teacher-lora", metavar="ADAPTER", help="The teacher's adapter."),
    click.option("--teacher-model", metavar="GGUF", help="Another file of the same shape as the teacher."),
)


def rank_option(text: str, default: int | None = None) -> Callable:
    """--rank, as these commands have it. text: its help."""
    kind = click.IntRange(1, 4096)
    return click.option(
        "--rank", "--lora-rank", "rank", type=kind, default=default, show_default=default is not None, help=text
    )


@dataclass
class TeacherOptions:
    """What TEACHERS ask for."""

    system_file: str | None
    shots: tuple[str, ...]
    teacher_lora: str | None
    teacher_model: str | None

    def inputs(self) -> list[tuple[str, str | None]]:
        return [
            ("the teacher's adapter", self.teacher_lora),
            ("the teacher", self.teacher_model),
            ("the prompt", self.system_file),
            *(("a file of --shots", path) for path in self.shots),
        ]

    def open(self, model: Model, engine: dict) -> dict[str, Any]:
        """The teacher of a student, as distill() and collect() of anytune.adapt take it."""
        other = None if self.teacher_model is None else load_model(self.teacher_model, engine)
        return {
            "system": None if self.system_file is None else read_text(self.system_file).strip(),
            "shots": self.shots,
            "teacher_adapter": load_adapter(self.teacher_lora, other or model),
            "teacher_model": other,
        }


def teacher_options(command: Callable) -> Callable:
    """Add TEACHERS; the command gets them as `teacher`."""

    @functools.wraps(command)
    def gathered(*args: Any, **kwargs: Any) -> Any:
        teacher = TeacherOptions(**{name: kwargs.pop(name) for name in TeacherOptions.__dataclass_fields__})
        return command(*args, teacher=teacher, **kwargs)

    for option in reversed(TEACHERS):
        gathered = option(gathered)
    return gathered


@dataclass
class Common:
    """What the options of this file ask for."""

    files: tuple[str, ...]
    format: str
    chat_template: str | None
    context: int
    val_file: tuple[str, ...]
    val_split: float
    seed: int
    keys: dict[str, str | None]
    ridge: float | None
    guard: float | None
    guard_text: str | None
    drift_text: str | None
    batch: int
    alpha: float | None
    resume: bool
    output: str
    no_verify: bool
    peft: str | None
    intermediate: str | None
    as_json: bool

    def open(self, model: str, engine: dict, inputs: list[tuple[str, str | None]]) -> Model:
        """The student; every file is looked for first, and no output may be an input, or exist without --force."""
        from anytune.adapt.ending import check_outputs

        self.files, self.val_file = data_files(self.files), data_files(self.val_file)
        texts = [path for path in (self.chat_template, self.guard_text, self.drift_text) if path is not None]
        if self.chat_template is not None:
            template_file(self.chat_template)
        for path in (self.guard_text, self.drift_text):
            if path is not None:
                text_file(path, "text")
        spare_inputs(
            [self.output, self.peft, self.intermediate],
            [
                ("the model", model_path(model)),
                *inputs,
                *(("the data", path) for path in (*self.files, *self.val_file)),
                *(("the text", path) for path in texts),
            ],
        )
        check_outputs(self.outputs(engine), self.resume)
        return load_model(model, engine)

    def reading(self, model: Model) -> Reading:
        from anytune.adapt.data import Reading
        from anytune.text import ChatTemplate

        template = (
            model.template
            if self.chat_template is None
            else ChatTemplate.for_model(model.gguf, model.tokenizer, self.chat_template)
        )
        return Reading(template, min(self.context, model.config.context), self.format, columns_from(self.keys))

    def settings(self, bars: Bars) -> Settings:
        from anytune.adapt.job import Settings

        return Settings(
            self.batch,
            self.alpha,
            None,
            self.resume,
            None if self.guard_text is None else read_text(self.guard_text),
            None if self.drift_text is None else read_text(self.drift_text),
            bars.tell,
        )

    def outputs(self, engine: dict) -> Outputs:
        from anytune.adapt.ending import Outputs

        return Outputs(self.output, not self.no_verify, True, engine["threads"], self.peft, self.intermediate, forced())

    def data(self) -> dict[str, Any]:
        return {"val_file": self.val_file, "val_split": self.val_split, "seed": self.seed}

    def end(self, result: Result) -> int:
        """Print a result -> the exit code: 1 if it is no success."""
        if self.as_json:
            print_json(result.facts)
        else:
            click.echo(str(result))
        return 0 if result.success else 1


def common_options(*without: str) -> Callable:
    """Add DATA, FIT and OUTPUT, without the options of these names; the command gets them as `common`."""
    names = [name for name in Common.__dataclass_fields__ if name not in without]
    nothing = {name: False if name in ("resume", "no_verify") else None for name in without}

    def add(command: Callable) -> Callable:
        @functools.wraps(command)
        def gathered(*args: Any, **kwargs: Any) -> Any:
            kwargs["keys"] = {name: kwargs.pop(f"{name}_key") for name in KEYS}
            common = Common(**{name: kwargs.pop(name) for name in names}, **nothing)
            return command(*args, common=common, **kwargs)

        for option in reversed((*DATA, *FIT, *OUTPUT, force_option, json_option)):
            gathered = option(gathered)
        gathered.__click_params__ = [p for p in gathered.__click_params__ if p.name not in without]
        return gathered

    return add
