"""anytune quantize: a GGUF file in another type."""

from __future__ import annotations

from collections import Counter
from typing import Any, ClassVar

import click

from anytune.cli.command import Command
from anytune.cli.opening import existing_file, model_path
from anytune.cli.options import force_option, forced, json_option
from anytune.cli.quantize_lower import lower
from anytune.cli.quantize_search import search
from anytune.cli.say import note, print_json
from anytune.errors import UserError
from anytune.files import check_output


class Quantize(Command):
    """`anytune quantize IN OUT TYPE`, or one of `parts` where its name is in IN's place."""

    parts: ClassVar[dict[str, click.Command]] = {"search": search, "lower": lower}

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        if args and args[0] in self.parts:
            return self.parts[args[0]].make_context(f"{info_name} {args[0]}", args[1:], parent, **extra)
        return super().make_context(info_name, args, parent, **extra)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_options(ctx, formatter)
        with formatter.section("Commands"):
            formatter.write_dl([(name, part.get_short_help_str(100)) for name, part in self.parts.items()])


@click.command(
    cls=Quantize,
    short_help="Quantize a model to another type.",
    example="""
    anytune quantize model-f16.gguf model-q4_k_m.gguf Q4_K_M
    anytune quantize model-f16.gguf model-q4_k_m.gguf Q4_K_M --imatrix imatrix.gguf
    anytune quantize model-f16.gguf small.gguf Q3_K_S --tensor-type "attn_v=Q6_K" --dry-run
""",
)
@click.argument("source", metavar="IN")
@click.argument("rest", nargs=-1, required=True, metavar="OUT TYPE")
@click.option("--imatrix", metavar="FILE", help="Importance matrix from `anytune imatrix`.")
@click.option(
    "--tensor-type",
    "overrides",
    multiple=True,
    metavar="PATTERN=TYPE",
    help="Tensors whose names match this regular expression get this type. May be repeated; the first wins.",
)
@click.option("--output-tensor-type", "output", metavar="TYPE", help="Type of output.weight.")
@click.option("--token-embedding-type", "embedding", metavar="TYPE", help="Type of token_embd.weight.")
@click.option("--pure", is_flag=True, help="No mix: use the type for every matrix.")
@click.option("--leave-output-tensor", "keep_output", is_flag=True, help="Keep the type of output.weight.")
@click.option(
    "--allow-requantize",
    "requantize",
    is_flag=True,
    help="Allow a file that is already quantized; rounding twice costs accuracy. (F32 is exact and needs no flag.)",
)
@force_option
@click.option("--dry-run", is_flag=True, help="Show what each tensor would become, write nothing.")
@click.option("-t", "--threads", type=click.IntRange(1, 1024), metavar="N", help="CPU threads. Default: all cores.")
@json_option
def quantize(
    source: str,
    rest: tuple[str, ...],
    imatrix: str | None,
    overrides: tuple[str, ...],
    output: str | None,
    embedding: str | None,
    pure: bool,
    keep_output: bool,
    requantize: bool,
    dry_run: bool,
    threads: int | None,
    as_json: bool,
) -> None:
    """Write the model IN to OUT in TYPE, one of

    F32 F16 BF16 Q8_0 Q4_0 Q4_1 Q5_0 Q5_1 Q2_K Q2_K_S Q3_K_S Q3_K_M Q3_K_L Q4_K_S Q4_K_M Q5_K_S Q5_K_M Q6_K IQ4_NL
    IQ4_XS Q1_0 Q2_0 TQ1_0 TQ2_0 MXFP4 MXFP4_MOE.

    Names mean the same as in llama.cpp, including mixes of tensor types. With --dry-run OUT may be omitted. OUT appears
    only when complete; Ctrl-C leaves nothing behind.
    """
    from anytune.cli.progress import Progress
    from anytune.quantization.run import quantize as run
    from anytune.units import bytes_text

    if len(rest) != 2 and not (dry_run and len(rest) == 1):
        raise click.UsageError(
            "Name the model, the file to write and the type: anytune quantize IN OUT TYPE", click.get_current_context()
        )
    path = existing_file(model_path(source), "model")
    if not dry_run:
        check_output(rest[0], forced(), [("the model", path), ("the importance file", imatrix)])
    if imatrix is not None:
        imatrix = str(existing_file(imatrix, "importance"))
    with Progress("quantize", "weights", quiet=as_json) as progress:
        facts = run(
            path,
            None if dry_run else rest[0],
            rest[-1],
            imatrix=imatrix,
            overrides=pairs(overrides),
            output=output,
            embedding=embedding,
            pure=pure,
            keep_output=keep_output,
            requantize=requantize,
            threads=threads,
            progress=progress.to,
        )
    if facts["without_importance"]:
        note(
            f"{len(facts['without_importance'])} matrices are not in {imatrix}, {facts['without_importance'][0]} "
            "the first of them: their columns are weighted equally"
        )
    if as_json:
        print_json({**facts, "path": None if dry_run else rest[0]})
        return
    if dry_run:
        click.echo("\n".join(_table(facts["tensors"])))
    counts = Counter(t["to"] for t in facts["tensors"])
    click.echo(
        f"{facts['type']}: {bytes_text(facts['bytes_before'])} -> {bytes_text(facts['bytes_after'])}, "
        f"{facts['bits_per_weight']:.2f} bits a weight  "
        f"({', '.join(f'{number} {name}' for name, number in counts.most_common())})"
    )
    if not dry_run:
        click.echo(rest[0])


def pairs(overrides: tuple[str, ...]) -> list[tuple[str, str]]:
    """[(pattern, type)] of --tensor-type. Raises UserError."""
    found = []
    for text in overrides:
        pattern, equals, kind = text.rpartition("=")
        if not (pattern and equals and kind):
            raise UserError(f"--tensor-type takes PATTERN=TYPE, such as attn_v=Q6_K, not {text!r}.")
        found.append((pattern, kind))
    return found


def _table(tensors: list[dict[str, Any]]) -> list[str]:
    width = max(len(t["name"]) for t in tensors)
    return [
        f"{t['name']:<{width}}  {' x '.join(map(str, t['shape'])):>14}  {t['from']:>6} -> {t['to']}" for t in tensors
    ]
