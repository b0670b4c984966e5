"""Training of a model's own weights on the bf16 CPU engine."""

import pytest

from anytune.engine.numpy.sizes import LEAN, Sizes
from anytune.model import Full
from tests.engine.conftest import TINY
from tests.model.conftest import stream
from tests.support import dry, full
from tests.support.require import need_bf16_products

need_bf16_products()

SIZES = {"usual": Sizes(), "lean": LEAN, "tiny": TINY}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return full.files(tmp_path_factory.mktemp("full"))


@pytest.mark.parametrize("name", full.NAMES)
def test_gradients_are_the_numpy_engines(files, name):
    full.check_gradients(files[name], 0.999, 3e-3, device="cpu-bf16")


@pytest.mark.parametrize("name", ["qwen2", "gemma3"])
def test_pieces_and_threads_change_no_gradient_much(files, name):
    want = None
    for threads in (1, 3):
        trainee = full.trainee_of(files[name], device="cpu-bf16", threads=threads)
        for sizes in SIZES.values():
            trainee.engine.sizes = sizes
            _, got = full.gradients(trainee)
            want = want or got
            cosine, longer, tensor = full.nearness(got, want)
            assert cosine > 0.9998 and longer < 1e-2, tensor


@pytest.mark.parametrize("name", ["qwen2", "gemma3"])
def test_subsets(files, name):
    full.check_subsets(files[name], 2e-5, device="cpu-bf16")


def test_micro_batches_add_up(files):
    full.check_accumulation(files["qwen3-tied"], device="cpu-bf16")


@pytest.mark.parametrize("name, kind", [("qwen2", "adamw"), ("gemma3", "adamw8bit")])
def test_steps_are_the_numpy_engines(files, name, kind):
    full.check_steps(files[name], kind, 3e-2, device="cpu-bf16")


def test_resuming_ends_in_the_same_bits(files):
    full.check_resume(files["qwen3-tied"], "adamw", device="cpu-bf16")


@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma3"])
@pytest.mark.parametrize(
    "what, sizes, keep, threads", [(Full(), Sizes(), 2, 1), (Full(), LEAN, 0, 2), (Full("attn_q,norm"), Sizes(), 1, 2)]
)
@pytest.mark.parametrize("tokens", [64, 200])
def test_a_step_takes_what_the_dry_run_said(files, name, what, sizes, keep, threads, tokens):
    trainee = full.trainee_of(files[name], what, tokens, device="cpu-bf16", threads=threads)
    dry.check(trainee, stream([tokens], silent=0), "blocks", sizes, keep, threads == 1)
