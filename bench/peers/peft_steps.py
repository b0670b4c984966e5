"""What the peers of transformers + peft on a GPU share: random weights in bf16, adapters in float32, timed steps."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable

import torch
from peft import LoraConfig, get_peft_model


def random_model(kind, config, device: str = "cuda"):
    with torch.device(device):
        torch.set_default_dtype(torch.bfloat16)
        model = kind._from_config(config, attn_implementation="sdpa")
        torch.set_default_dtype(torch.float32)
    model.config.use_cache = False
    return model


class Adapted:
    """A model with LoRA of `rank` on `modules`, its optimizer, and steps of it."""

    def __init__(self, model, rank: int, modules: str | list[str] = "all-linear", checkpointing: bool = False):
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            model.enable_input_require_grads()
        how = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=modules, task_type="CAUSAL_LM")
        self.model = get_peft_model(model, how)
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        for parameter in self.trained:
            parameter.data = parameter.data.float()
        self.device = self.trained[0].device.type
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-4, fused=True)

    def timed(self, loss: Callable[[], torch.Tensor], steps: int, warmup: int = 3) -> tuple[float, float]:
        """(median seconds of a step, the last loss): under bf16 autocast, clipping and AdamW included."""
        times = []
        for _ in range(steps + warmup):
            self._wait()
            begin = time.perf_counter()
            with torch.autocast(self.device, dtype=torch.bfloat16):
                value = loss()
            value.backward()
            torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self._wait()
            times.append(time.perf_counter() - begin)
        return statistics.median(times[warmup:]), float(value)

    def _wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


def tokens(vocabulary: int, shape: str, device: str = "cuda") -> tuple[torch.Tensor, torch.Tensor]:
    """(ids, labels), int64 [examples, tokens]: random, the second half of each example with loss."""
    examples, length = map(int, shape.split("x"))
    ids = torch.randint(0, vocabulary, (examples, length), device=device)
    labels = ids.clone()
    labels[:, : length // 2] = -100
    return ids, labels


def report(peer: str, shape: str, seconds: float, loss: float, processes: int = 1, **more) -> None:
    """One JSON line."""
    examples, length = map(int, shape.split("x"))
    row = {
        "peer": peer,
        "shape": shape,
        **more,
        "ms_per_step": round(seconds * 1e3, 2),
        "tokens_per_s": round(processes * examples * length / seconds, 1),
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2),
        "loss": round(loss, 4),
    }
    print(json.dumps(row), flush=True)
