"""A LoRA adapter: low-rank changes of a base model's weights, and its two file forms.

*.gguf is llama.cpp's form, in the base's own tensor names. A folder is peft's form, in Hugging Face's names
(see peft.py). Either is treated as hostile when it is read.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from anytune.adapter.fit import check_fit, check_shapes, level
from anytune.arguments import public
from anytune.errors import UserError
from anytune.gguf import GGUF, write_gguf

KEYS = ("adapter.type", "adapter.lora.alpha", "adapter.lora.task_name", "adapter.lora.prompt_prefix")
FILE_TYPES = ("F32", "F16", "BF16", "Q8_0")  # what adapters in circulation are stored as


@dataclass(repr=False)
class Adapter:
    """W becomes W + scale * b @ a for each base tensor W [out, in] in `tensors`.

    tensors: base tensor name -> (a float32 [rank, in], b float32 [out, rank]), in the base GGUF's row order; of a
    tensor of experts (a [experts, rank, in], b [experts, out, rank]).
    """

    tensors: dict[str, tuple[np.ndarray, np.ndarray]]
    rank: int
    alpha: float
    rslora: bool = False
    architecture: str = "llama"
    base_name: str | None = None
    base_sha256: str | None = None
    chat_template: str | None = None

    @property
    def scale(self) -> float:
        """alpha / rank (Hu et al. 2021), or alpha / sqrt(rank) (rsLoRA, Kalajdzievski 2023)."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def __repr__(self) -> str:
        scale = "alpha / sqrt(rank)" if self.rslora else "alpha / rank"
        return (
            f"<Adapter of {self.base_name or self.architecture}: {len(self.tensors)} tensors, rank {self.rank}, "
            f"alpha {self.alpha:g} ({scale}), {self.n_parameters:,} parameters>"
        )

    @property
    def n_parameters(self) -> int:
        return sum(a.size + b.size for a, b in self.tensors.values())

    @public()
    def save(self, path: str | os.PathLike, gguf: GGUF | None = None) -> None:
        """Write llama.cpp's form if `path` ends in .gguf, else a peft folder.

        gguf: the base, needed for a peft folder of architecture llama. UserError if it cannot be written.
        """
        if Path(path).suffix.lower() == ".gguf":
            self._save_gguf(Path(path))
        else:
            self.save_peft(path, gguf)

    @public()
    def save_peft(self, folder: str | os.PathLike, gguf: GGUF | None = None) -> None:
        """Write adapter_config.json and adapter_model.safetensors, for transformers + peft."""
        from anytune.adapter.peft import save

        save(self, Path(folder), gguf)

    @classmethod
    @public()
    def load(cls, path: str | os.PathLike, gguf: GGUF | None = None) -> Adapter:
        """Read a .gguf adapter or a peft folder; `gguf` is the base, to check names and shapes against.

        Raises UserError if the file is damaged, of an unknown kind, or does not fit the base.
        """
        path = Path(path)
        if path.is_dir():
            from anytune.adapter.peft import load

            adapter = cls(*load(path, gguf))
        else:
            adapter = cls._load_gguf(path, gguf)
        for name, pair in adapter.tensors.items():
            if not all(np.isfinite(part).all() for part in pair):
                raise UserError(f"{path}: the adapter of {name} contains NaN or infinity; train it again.")
        return adapter

    def other_base(self, gguf: GGUF) -> str | None:
        """A sentence for people if the adapter was made on another file than `gguf`, as far as it says; else None."""
        if self.base_sha256:
            if self.base_sha256 == gguf.sha256():
                return None
            return (
                f"the adapter was trained on another file than {gguf.path.name}"
                + (f" ({self.base_name})" if self.base_name else "")
                + ": it may work less well here"
            )
        own, its = (_model_name(name) for name in (gguf.metadata.get("general.name"), self.base_name))
        if not own or not its or own in its or its in own:
            return None
        return (
            f"the adapter names {self.base_name} as its base, and {gguf.path.name} is "
            f"{gguf.metadata['general.name']}, another file: it may work less well here"
        )

    def check(self, gguf: GGUF, where: str = "the adapter") -> None:
        """UserError unless every tensor fits the base `gguf` in architecture, name, orientation and shape."""
        shapes = {name: (a.shape, b.shape) for name, (a, b) in self.tensors.items()}
        check_fit(where, self.architecture, shapes, gguf)

    def _save_gguf(self, path: Path) -> None:
        if not self.tensors or not self.alpha:
            raise ValueError("an adapter needs a tensor, and an alpha (llama.cpp takes 0 for none)")
        values = {
            "general.architecture": self.architecture,
            "general.type": "adapter",
            "adapter.type": "lora",
            # llama.cpp divides by the rank whatever the kind: for rsLoRA the difference goes into alpha.
            "adapter.lora.alpha": self.scale * self.rank,
            "anytune.lora.rank": self.rank,
            "anytune.lora.alpha": float(self.alpha),
            "anytune.lora.rslora": self.rslora,
        }
        if self.base_name is not None:
            values |= {"general.base_model.count": 1, "general.base_model.0.name": self.base_name}
        if self.base_sha256 is not None:
            values["anytune.base.sha256"] = self.base_sha256
        if self.chat_template is not None:
            values["tokenizer.chat_template"] = self.chat_template
        tensors = [
            (f"{name}.lora_{side}", part.shape, "F32", np.ascontiguousarray(part, np.float32))
            for name, pair in self.tensors.items()
            for side, part in zip("ab", without_zeros(*pair), strict=True)
        ]
        write_gguf(path, values, tensors, kinds={"anytune.lora.alpha": "float64"})

    @classmethod
    def _load_gguf(cls, path: Path, base: GGUF | None) -> Adapter:
        with GGUF.open(path) as file:
            values = _Values(path, file.metadata)
            if values.get("general.type", str) != "adapter" or values.get("adapter.type", str) != "lora":
                raise UserError(
                    f"{path} is not a LoRA adapter (its general.type is {values.get('general.type', str)!r}); give "
                    "the file that training wrote."
                )
            for key in file.metadata:
                if key.startswith("adapter.") and key not in KEYS:
                    raise UserError(
                        f"{path} has {key}, which "
                        + (
                            "makes it act only behind certain tokens (activated LoRA)"
                            if key.startswith("adapter.alora.")
                            else "is not known here"
                        )
                        + ": such adapters cannot be used."
                    )
            architecture = values.need("general.architecture", str)
            names = _pairs(path, file)
            shapes = {
                name: (file.tensors[f"{name}.lora_a"].shape, file.tensors[f"{name}.lora_b"].shape) for name in names
            }
            ranks = check_shapes(str(path), shapes)
            if base is not None:
                check_fit(str(path), architecture, shapes, base)
            rank = max(ranks.values())
            alpha, rslora = _alpha(path, values, rank)
            tensors = {name: (file.float32(f"{name}.lora_a"), file.float32(f"{name}.lora_b")) for name in names}
            if len(set(ranks.values())) > 1:  # llama.cpp scales each by alpha over its own rank
                stored = values.need("adapter.lora.alpha", float)
                scales = {name: stored / ranks[name] if stored else 1.0 for name in names}
                (tensors, rank, alpha), rslora = level(str(path), tensors, scales), False
        return cls(
            tensors,
            rank,
            alpha,
            rslora,
            architecture,
            values.get("general.base_model.0.name", str),
            values.get("anytune.base.sha256", str),
            values.get("tokenizer.chat_template", str),
        )


def without_zeros(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A pair without ranks that are zero in both, of which one stays: llama.cpp scales each by alpha over its own rank,
    so that b takes up the difference."""
    used = a.any(axis=-1) | b.any(axis=-2)
    used = used.reshape(-1, used.shape[-1]).any(axis=0)  # of experts, whose ranks are one number in the file
    if used.all():
        return a, b
    used[0] |= not used.any()
    return a[..., used, :], b[..., used] * np.float32(used.sum() / len(used))


def _model_name(name: object) -> str:
    """What of a model's name tells it from others: letters and digits of its last part; "" for no such name."""
    last = name.rstrip("/").rpartition("/")[2].lower() if isinstance(name, str) else ""
    plain = "".join(c for c in last if c.isalnum())
    return plain if any(c.isdigit() for c in plain) and any(c.isalpha() for c in plain) else ""


class _Values:
    """Metadata whose types are checked as it is read."""

    def __init__(self, path: Path, metadata: dict) -> None:
        self.path, self.metadata = path, metadata

    def get(self, key: str, kind: type):
        value = self.metadata.get(key)
        if value is not None and not isinstance(value, kind):
            raise UserError(f"{self.path}: the value {key} is no {kind.__name__}; the file is damaged.")
        return value

    def need(self, key: str, kind: type):
        value = self.get(key, kind)
        if value is None:
            raise UserError(f"{self.path} has no {key}, which an adapter must have; convert it again.")
        return value


def _alpha(path: Path, values: _Values, rank: int) -> tuple[float, bool]:
    """(alpha, rslora). Files of other tools have only llama.cpp's alpha, where 0 means scale 1."""
    stored = values.need("adapter.lora.alpha", float)
    if not math.isfinite(stored):
        raise UserError(f"{path}: adapter.lora.alpha is {stored}; convert the adapter again.")
    rslora = bool(values.get("anytune.lora.rslora", bool))
    alpha = values.get("anytune.lora.alpha", float)
    if alpha is not None:
        scaled = alpha * math.sqrt(rank) if rslora else alpha
        if math.isclose(scaled, stored, rel_tol=1e-6):
            return alpha, rslora
    return stored or float(rank), False


def _pairs(path: Path, file: GGUF) -> list[str]:
    """The base tensor names, each of which must have exactly a lora_a and a lora_b."""
    sides: dict[str, set[str]] = {}
    for name, tensor in file.tensors.items():
        base, _, side = name.rpartition(".")
        if side not in ("lora_a", "lora_b") or not base:
            raise UserError(
                f"{path}: the tensor {name} is neither a .lora_a nor a .lora_b; such adapters are not supported."
            )
        if tensor.type.name not in FILE_TYPES:
            raise UserError(
                f"{path}: the tensor {name} is stored as {tensor.type.name}; adapters may use {', '.join(FILE_TYPES)}."
            )
        sides.setdefault(base, set()).add(side)
    for base, found in sides.items():
        if len(found) != 2:
            raise UserError(f"{path}: {base} has only a {found.pop()}; the file is damaged.")
    return list(sides)
