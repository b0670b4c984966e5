"""The operations of an engine: all that a model may ask of a device.

An array is whatever the engine makes it; models only hand it on. Activations are float32 (or the engine's
compute type) of shape [T, n]: T tokens of packed examples, one after another, no batch dimension. What changes
from step to step (ids, positions, example boundaries, rates) goes in as small integer arrays or numbers.
Backwards are written out, each beside its forward; frozen weights get no gradient. Operations that say "given
up" may write their result over that argument.

operations.py has the operations of every model, offered.py those that some engines have, decoding.py and updates.py
those of generation and of an optimizer's step, matrices.py what an engine makes of weights, budget.py what it can give
up for memory; here is what it is beside them. An engine that passes tests/engine (every operation against float64) can
run every model.
"""

from __future__ import annotations

from typing import Any, Protocol

from .budget import Budget
from .decoding import Decoding
from .matrices import Group, Pair, Weight
from .offered import Offered
from .operations import Operations
from .shapes import Array as Array
from .shapes import DeltaHeads as DeltaHeads
from .shapes import Heads as Heads
from .shapes import LatentHeads as LatentHeads
from .shapes import Number as Number
from .shapes import Router as Router
from .shapes import Stream as Stream
from .updates import Updates


class Engine(Operations, Offered, Decoding, Updates, Protocol):
    """What numpy.NumpyEngine implements, and every other engine must.

    A Number is a float, or something that becomes one with float() once the device is done.
    """

    # -- set by callers
    row_padding: int  # spare columns behind activations, for the low-rank products of linear()
    training: bool  # dropout acts, and what backwards need is kept
    sizes: Any  # of temporary pieces, from a way of its budget(); an engine begins with what is fastest
    process_group: Any  # the processes that train one model together (distributed/process_group.py), or None
    proved: bool | None  # whether known answers were checked, those of training the model's own weights too; None: no

    # -- its own
    name: str
    device: Any  # torch's or WebGPU's; None: the host
    workers: Any  # threads that operations are split between (workers.count), or None
    adapters_only: bool  # a model's own weights cannot be trained
    fp8: bool  # gradients pass frozen weights in 8-bit floats
    has_fp8: bool  # and whether the device could
    tolerance: float  # relative error of an operation that its number format explains
    decode_rows: int  # rows up to which a product is bound by reading weights, so that linear_decode() pays
    keeps_turned: bool  # queries and keys after rope are kept for the backward, where they could be made again
    keeps_attended: bool  # what attention gave is kept of layers whose forward runs twice
    steps_in_flight: int  # steps of training that may be asked for before the first one's Numbers are looked at
    widest: int  # the widest head of the model that runs on it
    # operations beyond those that every engine must have: "delta", "experts", "expert scales", "sinks", …
    offers: frozenset[str]

    def fp8_error(self) -> float:
        """Relative error of a product in 8-bit floats; engines with has_fp8 have it."""

    def own_answers(self) -> list:
        """Answers (answers.py) to known questions that only this engine has."""

    def enter(self, layer: int) -> None:
        """The operations that follow are of that layer: for engines whose caches are a layer's (model/decoder.py)."""

    # -- memory and transfers
    def use_threads(self, count: int) -> None:
        """Split operations between so many threads from now on; engines without workers need not have it."""

    def begin(self, starts, capacity: int, key: tuple[int, int, int] = (0, 0, 0)) -> None:
        """Announce a stream: example boundaries int32 [n+1], the most tokens any stream has, dropout's key."""

    def replay(self, kind: str, body, stream: Stream) -> Number:
        """body(stream on the engine) -> loss, with begin() before it. An engine may record body's first run for a
        kind and repeat it on other data of the same sizes, so body must hold no state of its own."""

    def weight(self, gguf, name: str, hold: str) -> Weight:
        """A frozen matrix [out, in], left in its GGUF blocks. hold: a name that the engine's budget knows, or lookup: a
        table of which a few rows at a time are read."""

    def constant(self, gguf, name: str) -> Array:
        """A small tensor of the file (norms, biases) as float32."""

    def trained(self, values: Array, gradient: Array) -> Weight:
        """A matrix [out, in] that is trained, usable where a weight() is: float32 `values` that change between steps,
        to whose `gradient`, of the same shape, the backwards of its products add."""

    def vector(self, values) -> Array: ...
    def integers(self, values) -> Array: ...
    def zeros(self, size: int) -> Array: ...
    def host(self, x: Array):
        """A float32 NumPy copy."""

    def view(self, x: Array):
        """As host(), but may share the engine's memory: to be read at once, not kept."""

    def settle(self) -> None:
        """Make the gradients that backwards have left for later; replay() does so itself."""

    def take_loads(self) -> dict[str, float]:
        """How evenly routers spread tokens in training since this was last asked (loads.py); {} if none ran."""

    # -- sums over tokens
    algebra: Any  # what adds them up and solves with them, in float64; see algebra.py

    def lift(self, x: Array) -> Any:
        """An activation as a float32 array of `algebra`, which may share the engine's memory: to be used at once."""

    def lower(self, values) -> Array:
        """float32 host values [rows, columns] as an activation."""

    def load(self, x: Array, values) -> None:
        """Write float32 host values of the same shape over x."""

    def group(
        self, weights, biases=None, pairs=None, dropout: float = 0.0, number: int = 0, bias_gradients=None
    ) -> Group:
        """Linears that share an input, so that they can be one product. number tells groups apart (dropout); that of
        the output head is negative. bias_gradients: None for each bias that is frozen."""

    def prepare(self, groups: list, parameters: Array, gradients: Array) -> None:
        """All groups that will be used, and the flat vectors that their trained pairs and gradients are views of: what
        an engine lays out beforehand it lays out now, and pairs again after each adamw()."""

    def lora_pair(self, a: Array, b: Array, scale: float, grad_a: Array | None, grad_b: Array | None) -> Pair:
        """A low-rank pair a [r, in], b [out, r]; gradients are added to grad_a and grad_b."""

    def release(self) -> None:
        """Give buffers back to the system."""

    def close(self) -> None:
        """Free all that the engine holds of the device, in an order that is safe. An engine is also a context manager
        that ends so."""

    def budget(self, weights, memory: int | None) -> Budget:
        """What can be given up for memory (see budget.py); memory: bytes allowed, None: what is free."""

    def peak(self) -> int:
        """The most bytes so far of the memory that the budget counts."""

    def flops_per_second(self) -> float:
        """What training will reach here, about: a short probe."""

    def explain(self, error: Exception, estimate: int | None = None) -> str | None:
        """A sentence for a failure of the device (out of memory, lost), None for any other error."""

    def identity(self) -> dict:
        """What decides how sums are rounded, besides the machine: JSON-able, with `engine`. Threads do not."""
