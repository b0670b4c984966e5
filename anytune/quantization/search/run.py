"""search(): a type for every tensor of a model, so that the whole stays within a budget and near the original.

1. Importance of columns on some windows of the text, as `anytune imatrix` measures it.
2. The KL divergence that each type costs in each tensor, to second order, on other windows (curvature.py).
3. The mix of least predicted KL within the budget (choose.py). What does not add up is corrected by a factor a type,
   from whole models in one type (calibrate.py); then the mix is chosen again.
4. The file is written, opened and measured: on the prediction's windows, and on windows that nothing else has seen.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anytune.errors import UserError
from anytune.files import check_output
from anytune.gguf import GGUF, TensorInfo
from anytune.likelihood.divergence import Reference
from anytune.quantization import mix
from anytune.quantization.filetypes import FILE_TYPES, block_name
from anytune.quantization.imatrix import Importance, read_imatrix
from anytune.quantization.tensor_types import TensorTypes
from anytune.quantization.rewrite import available_threads, carry_out
from anytune.quantization.run import refuse_rounding_twice
from anytune.quantization.search import report
from anytune.quantization.search.budget import Budget, Price, bytes_of, parse
from anytune.quantization.search.calibrate import Uniform, factors, predicted, sums, uniform
from anytune.quantization.search.choose import Option, cheapest, choose
from anytune.quantization.search.curvature import Costs, curvature
from anytune.quantization.search.whole import Whole
from anytune.quantization.search.windows import Windows, importance_of

if TYPE_CHECKING:
    from anytune.model import Model

TYPES = ("Q2_K", "Q3_K", "IQ4_XS", "MXFP4", "Q4_0", "IQ4_NL", "Q4_K", "Q4_1", "Q5_0", "Q5_K", "Q5_1", "Q6_K", "Q8_0")
ROUNDS = 3  # of choosing, each with the factors of the types that the last one chose
SHARE = 0.05  # of the predicted KL that makes a type worth a measurement of the whole model
RIVALS = 2  # uniform models within the budget that are measured
Say = Callable[[str, int, int], None]


def search(
    model: Model,
    text: str,
    budget: str,
    *,
    target: str | os.PathLike | None = None,
    types: Sequence[str] = TYPES,
    context: int | None = None,
    chunks: int | None = None,
    draws: int = 8,
    imatrix: str | os.PathLike | None = None,
    price: Price = bytes_of,
    requantize: bool = False,
    seed: int = 0,
    threads: int | None = None,
    say: Say | None = None,
) -> dict[str, Any]:
    """Choose a type for every matrix within `budget` and write the file to `target` (None: only tell), -> facts.

    budget: '300MiB' of file, '4.0bpw' or '120Mcycles'. types: that may be chosen, beside each tensor's own. context,
    chunks: tokens of a window and windows that the prediction is made on, and as many more that it is checked on.
    imatrix: importances, in place of those measured on the text's other windows. price: of a tensor in a type, in
    bytes or cycles. requantize: allow a source that is quantized. say: called with (stage, done, of how many).
    Raises UserError.
    """
    wanted = parse(budget)
    check_output(target, True, [("the model", model.gguf.path), ("the importance file", imatrix)])
    work = _Work(
        model, wanted, candidates(model, types), price, threads or available_threads(), say or (lambda *_: None)
    )
    if not requantize:
        refuse_rounding_twice(model.gguf, TensorTypes(None, _with(model.gguf, {name: "" for name in work.types})))
    work.check_budget()
    seen = Windows.of(model, text, context, chunks)
    work.importance = (
        read_imatrix(imatrix) if imatrix is not None else importance_of(model, seen.others, work.said("importance"))
    )
    work.costs = curvature(
        model,
        seen.measured,
        work.types,
        draws=draws,
        seed=seed,
        importance=work.importance,
        threads=work.threads,
        progress=work.said("costs"),
    )
    with tempfile.TemporaryDirectory(prefix="anytune-search-", dir=Path(target).parent if target else None) as folder:
        work.whole = Whole(model, seen.measured, work.importance, Path(folder), work.threads)
        chosen = work.settle()
        return work.finish(chosen, Path(target) if target else None, Path(folder), seen)


def candidates(model: Model, types: Sequence[str]) -> dict[str, list[str]]:
    """Tensor -> types to measure, of the matrices that the model runs."""
    names = [block_name(name) for name in types]
    found = {}
    layers = model.weights.layers(model.rope_tables(1))
    weighed = {f"blk.{i}.{part}.weight" for i, layer in enumerate(layers) for _, parts in layer.named for part in parts}
    for name, t in model.gguf.tensors.items():  # others (such as E2B's embeddings of each layer) keep their types
        if name in weighed | {"token_embd.weight", "output.weight"} and mix.may_quantize(name, t.shape):
            fitting = dict.fromkeys(mix.fitting(kind, t.shape[-1]) for kind in names)
            found[name] = [kind for kind in fitting if kind != t.type.name]
    return found


def _with(file: GGUF, formats: dict[str, str]) -> dict[str, str]:
    """All tensors' types, those of `formats` in place of the file's."""
    return {name: formats.get(name, t.type.name) for name, t in file.tensors.items()}


@dataclass
class _Work:
    """One search under way."""

    model: Model
    budget: Budget
    types: dict[str, list[str]]
    price: Price
    threads: int
    say: Say
    importance: Importance | None = None
    costs: Costs = field(default_factory=dict)
    whole: Whole | None = None
    uniform: dict[str, Uniform] = field(default_factory=dict)  # those that were measured
    factors: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        file = self.model.gguf
        self.prices = {name: self._prices(file.tensors[name], kinds) for name, kinds in self.types.items()}
        others = sum(self.price(t, t.type.name) or 0 for name, t in file.tensors.items() if name not in self.types)
        self.limit = self.budget.limit(file) - others

    def _prices(self, tensor: TensorInfo, kinds: Sequence[str]) -> dict[str, int]:
        found = {kind: self.price(tensor, kind) for kind in (*kinds, tensor.type.name)}
        if not any(value is not None for value in found.values()):
            raise UserError(f"None of the types is possible for {tensor.name}: allow others with --types.")
        return {kind: value for kind, value in found.items() if value is not None}

    def said(self, stage: str) -> Callable[[int, int], None]:
        return lambda done, total: self.say(stage, done, total)

    def check_budget(self) -> None:
        least = cheapest(
            {name: [Option(kind, price, 0.0) for kind, price in prices.items()] for name, prices in self.prices.items()}
        )
        if least > self.limit:
            raise UserError(
                f"{self.budget.text} cannot be met with these types: they need at least "
                f"{report.amount(self, least)}. Allow smaller types with --types, or a larger --budget."
            )

    def options(self) -> dict[str, list[Option]]:
        return {
            name: [
                Option(kind, price, self.factors.get(kind, 1.0) * self.cost(name, kind))
                for kind, price in prices.items()
            ]
            for name, prices in self.prices.items()
        }

    def cost(self, name: str, kind: str) -> float:
        """Predicted KL in nats a token, without factors: nothing for the tensor's own type."""
        return 0.0 if kind == self.model.gguf.tensors[name].type.name else self.costs[name][kind]

    def settle(self) -> dict[str, str]:
        """Choose, measure the uniform models of what was chosen, and choose again -> tensor -> type."""
        for tensor, costs in self.costs.items():
            costs[self.model.gguf.tensors[tensor].type.name] = 0.0
        kinds = dict.fromkeys(kind for some in self.types.values() for kind in some)
        models = {
            kind: made
            for kind in kinds
            if (made := uniform(kind, self.model.gguf.tensors, self.costs, self.prices)) is not None
        }
        rivals = sorted((m for m in models.values() if m.price <= self.limit), key=lambda m: predicted(m.sums, {}))
        self.measure(rivals[:RIVALS])
        chosen = choose(self.options(), self.limit)
        for _ in range(ROUNDS):
            parts = sums(chosen, self.costs)
            total = sum(parts.values())
            wanted = [models[kind] for kind, cost in parts.items() if cost > SHARE * total and kind in models]
            if not self.measure(wanted):
                break
            chosen = choose(self.options(), self.limit)
        return chosen

    def measure(self, models: Sequence[Uniform]) -> bool:
        """Measure those that were not yet; whether there were any."""
        new = [m for m in models if m.kind not in self.uniform]
        for at, model in enumerate(new):
            self.uniform[model.kind] = model.measured(self.whole.kl(_with(self.model.gguf, model.formats)))
            self.say("whole models", at + 1, len(new))
        self.factors = factors(list(self.uniform.values()))
        return bool(new)

    def finish(self, chosen: dict[str, str], target: Path | None, folder: Path, seen: Windows) -> dict[str, Any]:
        """Write, measure, tell."""
        file, path = self.model.gguf, target or folder / "chosen.gguf"
        weights = {
            kind: sum(file.tensors[n].n_elements for n, k in chosen.items() if k == kind) for kind in chosen.values()
        }
        most = max(weights, key=weights.get)
        kind = next((t for t in FILE_TYPES.values() if t.block == most), None)  # what general.file_type says
        facts = carry_out(
            file,
            path,
            TensorTypes(kind, _with(file, chosen)),
            {},
            {},
            self.importance,
            self.threads,
            self.said("writing"),
        )
        result = {"measured": self.whole.of(path)}
        if seen.held_out:
            result["held_out"] = self.whole.of(path, Reference(self.model, seen.held_out))
        size = path.stat().st_size
        return report.facts(self, chosen, facts, result, size, target)
