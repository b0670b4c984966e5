"""Model files of published shapes whose tensors are holes: enough for what reads only headers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from anytune.gguf.writer import header_of
from tests.support.tiny import Shape, metadata, tensor_table


@dataclass(frozen=True)
class Published(Shape):
    vocabulary: int = 0

    @property
    def vocab(self) -> int:
        return self.vocabulary


def qwen3(width: int, hidden: int, layers: int, heads: int, tied: bool = True) -> Published:
    return Published("qwen3", layers, width, heads, 8, 128, hidden, tied, qk_norm=True, vocabulary=151_936)


def write_shape(path: Path, shape: Published, kind: str) -> None:
    """A file whose header is that of such a model, and whose tensors are a hole."""
    tensors = [
        (name, dims, kind if role == "matrix" else "F32") for name, (dims, _, role) in tensor_table(shape).items()
    ]
    known = {
        key: value
        for key, value in metadata(
            Shape(
                shape.arch,
                shape.layers,
                shape.width,
                shape.heads,
                shape.kv_heads,
                shape.head_dim,
                shape.ff,
                shape.tied,
                meta=shape.meta,
            ),
            "shape",
        ).items()
        if not key.startswith("tokenizer.")
    }
    known |= {f"{shape.arch}.vocab_size": shape.vocab, f"{shape.arch}.context_length": 8192}
    header, places = header_of(known, tensors)
    end = -(-len(header) // 32) * 32 + -(-sum(places[-1]) // 32) * 32
    with open(path, "wb") as file:
        file.write(header)
        file.truncate(end)
