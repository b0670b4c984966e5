"""Training of every weight against transformers and PyTorch on the same weights, and its result in llama.cpp."""

import numpy as np
import pytest

import anytune
from anytune.engine import optimizers
from anytune.llamacpp.judge import llamacpp_logprobs
from anytune.model import Full
from anytune.train.trained_model import TrainedModel
from tests.peers.batches import examples, micro_batch, targets_of
from tests.peers.lora import back
from tests.support import twin, twin_experts
from tests.support.distributions import kl
from tests.support.require import need

NAMES = ["llama", "llama3", "mistral", "qwen2", "qwen3", "qwen3-tied", "gemma3"]
RATE, STEPS = 2e-3, 6
# a choice has no gradient; what makes keys and values of latents is never trained
FROZEN = ("exp_probs_b.bias", "attn_k_b.weight", "attn_v_b.weight")


class Twin:
    """A transformers model of the file, all of it trained."""

    def __init__(self, path):
        self.values, weights = twin.read(path)
        self.model = twin.transformers_model(path).train()
        own = dict(self.model.named_parameters())
        self.parameters = {
            name: own[twin.module_name(name, self.values["general.architecture"])]
            for name in weights
            if name != "rope_freqs.weight"
        }

    def loss(self, ids, targets):
        torch = need("torch")
        logits = self.model(input_ids=torch.from_numpy(ids.astype(np.int64))).logits
        return torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), torch.from_numpy(targets.astype(np.int64)).flatten(), ignore_index=-1
        )

    def gradients(self) -> dict[str, np.ndarray]:
        """Rows as the GGUF has them."""
        found = {}
        for name, parameter in self.parameters.items():
            found[name] = back(name, parameter.grad.numpy(), self.values, "b")
        return found


def batches(count: int, vocab: int = 320):
    rng = np.random.default_rng(3)
    for _ in range(count):
        ids = examples(rng, 3, 23, vocab)
        yield ids, targets_of(ids, silent=7)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_losses_and_the_model_that_comes_out(tiny_file, tmp_path, name):
    torch = need("torch")
    torch.set_num_threads(1)
    path = tiny_file(name)
    trainee = anytune.load(path, device="numpy", threads=1).full_trainee(Full(), ubatch=69)
    peer = Twin(path)
    assert set(peer.parameters) == set(trainee.names)
    decayed = [p for p in peer.parameters.values() if p.ndim > 1]
    optimizer = torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": 0.1},
            {"params": [p for p in peer.parameters.values() if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=RATE,
    )
    for step, (ids, targets) in enumerate(batches(STEPS), 1):
        batch = micro_batch(ids, targets)
        mine = trainee.accumulate(batch, 1 / batch.loss_tokens, step, 0) / batch.loss_tokens
        theirs = peer.loss(ids, targets)
        assert mine == pytest.approx(theirs.item(), rel=1e-5 if step == 1 else 2e-3)
        optimizer.zero_grad()
        theirs.backward()
        for tensor, want in peer.gradients().items() if step == 1 else ():
            got, want = trainee.gradients[tensor].astype(np.float64), want.astype(np.float64).ravel()
            assert got @ want >= 0.9999 * np.linalg.norm(got) * np.linalg.norm(want) > 0, tensor
            assert np.linalg.norm(got) == pytest.approx(np.linalg.norm(want), rel=1e-3), tensor
        norm = torch.nn.utils.clip_grad_norm_(peer.parameters.values(), 1.0)
        optimizer.step()
        assert trainee.update(RATE, step, weight_decay=0.1) == pytest.approx(
            norm.item(), rel=1e-3 if step == 1 else 2e-2
        )
    need("xllamacpp")
    TrainedModel(trainee.model.gguf, trainee.values(), "F32").save(tmp_path / "tuned.gguf")
    line = examples(np.random.default_rng(9), 1, 24, 320)[0].tolist()
    served = llamacpp_logprobs(tmp_path / "tuned.gguf", [line], vocab=320, threads=1)[0]
    with torch.no_grad():
        want = torch.log_softmax(torch.from_numpy(twin.logits(peer.model.eval(), line)), -1).numpy()
    assert np.sum(np.exp(want) * (want - served), -1).max() < 1e-4


def gradient_of(tensor: str, weights: dict, values: dict, own: dict) -> np.ndarray:
    """What transformers has for a tensor, as the GGUF has it; own: its parameters by name."""
    arch = values["general.architecture"]
    if found := twin_experts.PART.fullmatch(tensor):
        end = "_bias" if found[3] == "bias" else ""
        place = twin_experts.place(arch, found[1])
        both = {name: own[f"{place}.{name}{end}"].grad for name in ("gate_up_proj", "down_proj")}
        return twin_experts.ours(arch, both)[found[2]].numpy()
    gradient, shape = own[twin.module_name(tensor, arch)].grad.numpy(), weights[tensor].shape
    places = twin.theirs(tensor, np.arange(weights[tensor].size).reshape(shape), values)
    out = np.empty(weights[tensor].size, np.float32)
    out[places.ravel()] = gradient.ravel()
    return out.reshape(shape) / (weights[tensor] if tensor.endswith("ssm_a") else 1)  # A_log is there


MIXED = ["qwen3moe", "gpt-oss", "qwen35", "qwen35moe", "gemma4", "gemma4-experts"]
MIXED += ["lfm2moe", "deepseek2", "deepseek3"]


@pytest.mark.parametrize("name", MIXED)
def test_gradients_of_experts_states_and_sinks(tiny_file, tmp_path, name):
    need("torch").set_num_threads(1)
    path, (ids, targets) = tiny_file(name), next(batches(1))
    trainee, batch = anytune.load(path, device="numpy", threads=1).full_trainee(Full(), ubatch=69), None
    values, weights = twin.read(path)
    weights = {name: w for name, w in weights.items() if not name.startswith("rope_") and "output_scale" not in name}
    weights = {name: w for name, w in weights.items() if not name.endswith(FROZEN)}
    assert set(trainee.names) == set(weights)
    batch = micro_batch(ids, targets)
    trainee.accumulate(batch, 1 / batch.loss_tokens, 1, 0)
    peer = Twin.__new__(Twin)
    peer.model = twin.transformers_model(path).train()
    peer.loss(ids, targets).backward()
    own = dict(peer.model.named_parameters())
    for tensor in weights:
        got = trainee.gradients[tensor].astype(np.float64)
        want = gradient_of(tensor, weights, values, own).astype(np.float64).ravel()
        assert got @ want >= 0.9999 * np.linalg.norm(got) * np.linalg.norm(want), tensor
        assert np.linalg.norm(got) == pytest.approx(np.linalg.norm(want), rel=2e-3), tensor
    trainee.update(RATE, 1)
    need("xllamacpp")
    TrainedModel(trainee.model.gguf, trainee.values(), "F32").save(tmp_path / "tuned.gguf")
    line = ids[0].tolist()
    served = llamacpp_logprobs(tmp_path / "tuned.gguf", [line], vocab=320, threads=1)[0]
    mine = anytune.load(tmp_path / "tuned.gguf", device="numpy", threads=1).logits(line)
    assert kl(served, mine).max() < (1e-5 if name.startswith("gemma") else 1e-7)  # GELU's table of f16


def test_adafactor_is_that_of_transformers():
    """As its Trainer sets it up: no first moment, the rate from outside."""
    torch, peer = need("torch"), need("transformers.optimization").Adafactor
    rng = np.random.default_rng(0)
    for shape in ((40, 24), (30,)):
        p = rng.standard_normal(shape).astype(np.float32)
        theirs = torch.nn.Parameter(torch.from_numpy(p.copy()))
        optimizer = peer([theirs], lr=1e-2, scale_parameter=False, relative_step=False, weight_decay=0.1)
        p, state = p.reshape(-1), optimizers.start("adafactor", shape)
        for step in range(1, 6):
            g = rng.standard_normal(shape).astype(np.float32) * 10.0**-step
            theirs.grad = torch.from_numpy(g.copy())
            optimizer.step()
            optimizers.reference(
                "adafactor", p, g.reshape(-1), state, shape, optimizers.Rule(1, 1e-2, step, 0, 0, 0, 0.1)
            )
            np.testing.assert_allclose(p.reshape(shape), theirs.detach().numpy(), rtol=2e-5, atol=2e-6)
