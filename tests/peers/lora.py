"""Our LoRA inside peft: the same tensors on a transformers twin, and its training step."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.support import twin, twin_experts
from tests.support.require import need


def back(tensor: str, w: np.ndarray, values: dict, side: str) -> np.ndarray:
    """The inverse of twin.theirs for side "a" or "b" of a pair: rows and columns as the GGUF holds them."""
    if twin_experts.is_expert(tensor):
        return w
    axis = 1 if side == "a" else 0
    places = np.expand_dims(np.arange(w.shape[axis]), 1 - axis)
    order = twin.theirs(tensor, places, values, side).ravel()
    return np.take(w, np.argsort(order), axis)


FED = tuple(f"ffn_{part}{end}.weight" for part in ("gate", "up", "down") for end in ("", "_shexp"))


class PeftTwin:
    """A transformers model of `path` with peft adapters; tensors: {base tensor: (a [r, in], b [out, r])}."""

    def __init__(
        self,
        path: Path,
        tensors: dict[str, tuple[np.ndarray, np.ndarray]],
        rank: int,
        alpha: float,
        rslora: bool = False,
    ):
        peft, torch = need("peft"), need("torch")
        self.values, self.weights = twin.read(path)
        self.arch = self.values["general.architecture"]
        experts = {name: pair for name, pair in tensors.items() if twin_experts.is_expert(name)}
        plain = {
            name: pair for name, pair in tensors.items() if self.arch in ("glm4moe", "deepseek2") and name.endswith(FED)
        }
        tensors = {name: pair for name, pair in tensors.items() if name not in experts and name not in plain}
        modules = [twin.module_name(name, self.arch).removesuffix(".weight") for name in tensors]
        settings = peft.LoraConfig(
            r=rank, lora_alpha=alpha, use_rslora=rslora, lora_dropout=0.0, target_modules=modules
        )
        self.model = peft.get_peft_model(twin.transformers_model(path), settings)
        own = dict(self.model.named_parameters())
        self.parameters = {}
        for name, (a, b) in tensors.items():
            module = "base_model.model." + twin.module_name(name, self.arch).removesuffix(".weight")
            pair = [own[f"{module}.lora_{side}.default.weight"] for side in "AB"]
            a, b = (twin.theirs(name, w, self.values, side) for w, side in ((a, "a"), (b, "b")))
            for parameter, value in zip(pair, (a, b), strict=True):
                parameter.data.copy_(torch.from_numpy(np.ascontiguousarray(value)))
            self.parameters[name] = pair
        trained = [name for name, p in own.items() if p.requires_grad]
        if len(trained) != 2 * len(tensors):
            raise AssertionError(f"peft trains {len(trained)} tensors, not {2 * len(tensors)}")
        scale = alpha / (rank**0.5 if rslora else rank)
        plain = {
            name: (twin.module_name(name, self.arch).removesuffix(".weight"), *pair) for name, pair in plain.items()
        }
        self.parameters |= twin_experts.adapt_linears(self.model.base_model.model, plain, scale)
        self.parameters |= twin_experts.adapt(self.model.base_model.model, self.arch, experts, scale, self.weights)

    def logits(self, ids: list[int]) -> np.ndarray:
        self.model.eval()
        return twin.logits(self.model, ids)

    def loss(self, ids: np.ndarray, targets: np.ndarray):
        """Mean cross-entropy over the positions of ids [batch, n] whose target is not -1: a torch scalar."""
        torch = need("torch")
        self.model.train()
        logits = self.model(input_ids=torch.from_numpy(ids.astype(np.int64))).logits
        return torch.nn.functional.cross_entropy(
            logits.flatten(0, 1).float(), torch.from_numpy(targets.astype(np.int64)).flatten(), ignore_index=-1
        )

    def gradients(self, ids: np.ndarray, targets: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """{base tensor: (gradient of a, gradient of b)} of the mean loss, rows of b as the GGUF has them."""
        self.loss(ids, targets).backward()
        out = {}
        for name, (a, b) in self.parameters.items():
            a, b = (back(name, p.grad.numpy(), self.values, side) for p, side in ((a, "a"), (b, "b")))
            out[name] = a, b * twin_experts.behind(name, self.weights)
        return out

    def train(self, batches: list[tuple[np.ndarray, np.ndarray]], lr: float, max_grad_norm: float = 1.0) -> list[float]:
        """The mean loss of each (ids, targets) before its AdamW step (no weight decay)."""
        torch = need("torch")
        parameters = [p for pair in self.parameters.values() for p in pair]
        optimizer = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
        losses = []
        for ids, targets in batches:
            loss = self.loss(ids, targets)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        return losses
