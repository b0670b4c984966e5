"""What a mixer and a feed-forward have in common: each reads the residual stream through a norm and adds to it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from .build import LayerWeights
    from .config import Config

Array = Any


@dataclass(frozen=True)
class Norm:
    """The gain of an RMSNorm. gradient: what that of the gain is added to; None: it is frozen."""

    gain: Array
    gradient: Array | None = None

    @property
    def trains(self) -> bool:
        return self.gradient is not None


@dataclass
class Run:
    """What goes along a run of the layers beside the residual stream.

    still: an angle table that turns nothing; beside: what each layer mixes in of its own, [T, n]; kept: {layer: (keys,
    values)} that later layers read; owed: {layer: the gradients of these}; owed_beside: {layer: those of what it mixes
    in}, if they are wanted (owes).
    """

    still: tuple | None = None
    owes: bool = False
    beside: list = field(default_factory=list)
    kept: dict[int, tuple] = field(default_factory=dict)
    owed: dict[int, tuple] = field(default_factory=dict)
    owed_beside: dict[int, Any] = field(default_factory=dict)

    def clear(self) -> None:
        for held in (self.beside, self.kept, self.owed, self.owed_beside):
            held.clear()


@dataclass
class Part:
    """Half a layer. norm: before it; post: of its result (either may be None); reads, writes: its first and last
    product.

    A subclass says with tensors(config, layer) which tensors it wants, with of(weights, config) how it is made of them,
    and has forward() and backward().
    """

    norm: Norm | None
    post: Norm | None
    eps: float
    reads: Any
    writes: Any

    READS: ClassVar[tuple[str, ...]] = ()  # a subclass's names of the linears in `reads`
    WRITES: ClassVar[tuple[str, ...]] = ()
    REWINDS: ClassVar[bool] = True  # whether its state of decoding can forget the last tokens
    NEEDS: ClassVar[str | None] = None  # what an engine must offer for it beyond the operations of every engine

    @classmethod
    def around(cls, w: LayerWeights, c: Config, norm: str, post: str | None = None, first: int = 0) -> dict[str, Any]:
        """A half's own fields: its norms by name (post: where the architecture has any), and the groups of its first
        and last product, which have the numbers `first` and the next."""
        return {
            "norm": w.norm(norm),
            "post": w.norm(post) if post and c.arch.post_norms else None,
            "eps": c.eps,
            "reads": w.group(first, *cls.READS),
            "writes": w.group(first + 1, *cls.WRITES),
        }

    @classmethod
    def linears(cls, c: Any) -> tuple[tuple[str, ...], ...]:
        """The names in `products`."""
        return cls.READS, cls.WRITES

    @classmethod
    def optional(cls, c: Any) -> dict[str, tuple[int, ...]]:
        """Further tensors that it may have; as tensors()."""
        return {}

    @property
    def products(self) -> tuple[tuple[Any, tuple[str, ...]], ...]:
        """(group, its tensors' names within the layer), in the order in which they run."""
        return (self.reads, self.READS), (self.writes, self.WRITES)

    @property
    def named(self) -> tuple[tuple[Any, tuple[str, ...]], ...]:
        """As products, of all its linears, those of experts too."""
        return self.products

    @property
    def groups(self) -> list:
        """All its linears, as the engine has them."""
        return [group for group, _ in self.named]

    @property
    def trains_reads(self) -> bool:
        """Whether anything before the last product is trained."""
        return self.reads.trains or (self.norm is not None and self.norm.trains)

    @property
    def trains(self) -> bool:
        return self.trains_reads or self.writes.trains or (self.post is not None and self.post.trains)

    @property
    def reader(self) -> Any:
        """The group whose backward reads the gradient of the stream behind this part first; None: a norm does."""
        return self.writes if self.post is None else None

    def read(self, e, x) -> tuple:
        """The first product's results of the residual stream x [T, d]."""
        return e.linear(x, self.reads) if self.norm is None else e.norm_linear(x, self.norm.gain, self.eps, self.reads)

    def read_backward(self, e, dys: tuple, x, dout, below, need_dx: bool):
        """dx [T, d] of read(), plus dout, or None if it is not needed. Adds to the gradients; below: as in mixers."""
        if self.norm is not None:
            how = self.norm.gain, self.eps, self.reads
            return e.norm_linear_backward(dys, x, *how, dout, need_dx, below, self.norm.gradient)
        dx = e.linear_backward(dys, x, self.reads, need_dx)
        return e.add(dout, dx) if need_dx else None

    def posted(self, e, y):
        """What the part gives, of its last product's y [T, d]."""
        return y if self.post is None else e.rms_norm(y, self.post.gain, self.eps)

    def add(self, e, x, y):
        """The residual stream x with the part's result, of y; all [T, d]."""
        return e.add(x, self.posted(e, y))

    def kept(self, y):
        """What the backward of add() needs of y."""
        return None if self.post is None else y

    def add_backward(self, e, dout, y):
        """The gradient by the part's result; y: what kept() gave."""
        return dout if self.post is None else norm_backward(e, dout, y, self.post, self.eps)


def norm_backward(e, dy, x, norm: Norm, eps: float, residual=None):
    """Back through an RMSNorm of x [T, n], plus residual if given; adds its gain's gradient."""
    if norm.trains:
        e.gain_gradient(dy, x, eps, norm.gradient)
    return e.rms_norm_backward(dy, x, norm.gain, eps, residual)


@dataclass
class Layer:
    """A mixer, in which tokens see each other, and a feed-forward, in which each is alone; then, in few models, what
    mixes in an embedding of the layer's own, and a factor."""

    mixer: Part
    ffn: Part
    beside: Part | None = None
    factor: float = 1.0
    run: Run = field(default_factory=Run)

    @property
    def parts(self) -> tuple[Part, ...]:
        return (self.mixer, self.ffn) if self.beside is None else (self.mixer, self.ffn, self.beside)

    @property
    def reader(self) -> Any:
        """As a part's, of the whole layer."""
        return self.ffn.reader if self.beside is None and self.factor == 1.0 else None

    @property
    def trains(self) -> bool:
        return any(part.trains for part in self.parts)

    @property
    def products(self) -> tuple[tuple[Any, tuple[str, ...]], ...]:
        return tuple(product for part in self.parts for product in part.products)

    @property
    def named(self) -> tuple[tuple[Any, tuple[str, ...]], ...]:
        return tuple(linears for part in self.parts for linears in part.named)

    def written_by(self, product: int) -> Part | None:
        """The part whose result product number `product` gives; None: it gives none."""
        group = self.products[product][0]
        return next((part for part in self.parts if part.writes is group), None)

    @property
    def groups(self) -> list:
        return [group for part in self.parts for group in part.groups]
