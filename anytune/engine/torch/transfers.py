"""Between the host and the device."""

from __future__ import annotations

import numpy as np
import torch

from .arrays import own, real

Tensor = torch.Tensor


class Transfers:
    """Mixed into the engine."""

    def constant(self, gguf, name: str) -> Tensor:
        return self.vector(gguf.float32(name))

    def vector(self, values) -> Tensor:
        return torch.as_tensor(np.ascontiguousarray(values, np.float32)).to(self.device)

    def integers(self, values) -> Tensor:
        return torch.as_tensor(np.ascontiguousarray(values, np.int32)).to(self.device)

    def zeros(self, size: int) -> Tensor:
        return torch.zeros(size, dtype=torch.float32, device=self.device)

    def host(self, x: Tensor) -> np.ndarray:
        x = real(x)
        return x.to("cpu", _numbers(x), copy=True).numpy()

    def view(self, x: Tensor) -> np.ndarray:
        x = real(x)
        return x.to("cpu", _numbers(x)).numpy()

    def lift(self, x: Tensor) -> Tensor | np.ndarray:
        return self.view(x) if self.device.type == "mps" else real(x).float()

    def lower(self, values) -> Tensor:
        return own(self.array(*values.shape)).copy_(self.vector(values))

    def load(self, x: Tensor, values) -> None:
        # a copy, since a checkpoint's arrays are read-only maps, of which torch warns
        x.copy_(torch.from_numpy(np.array(values, np.uint8 if x.dtype == torch.uint8 else np.float32)).view(x.shape))
        self.updater.loaded()


def _numbers(x: Tensor) -> torch.dtype:
    """What an array is on the host: codes of moments are bytes, all else is float32."""
    return x.dtype if x.dtype == torch.uint8 else torch.float32
