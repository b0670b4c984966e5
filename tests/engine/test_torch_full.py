"""Training of a model's own weights on every torch device of this machine."""

import pytest

from anytune.engine import optimizers as rules
from anytune.engine.devices import engine_for
from tests.support import full
from tests.support.require import need
from tests.support.triton import DEVICE

need("torch")
PLACES = ["cpu-torch", *(["cuda"] if DEVICE == "cuda" else [])]
# least cosine, relative error of losses
FORMATS = {"f32": (0.9999, 1e-5), "fp16": (0.9999, 3e-4), "bf16": (0.999, 3e-3)}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return full.files(tmp_path_factory.mktemp("full"))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("name", full.NAMES)
def test_gradients_are_the_numpy_engines(files, place, dtype, name):
    runs = 3 if place == "cuda" else 1      # eager, recorded, replayed
    full.check_gradients(files[name], *FORMATS[dtype], runs, device=place, dtype=dtype)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", ["qwen2", "gemma3"])
def test_subsets(files, place, name):
    full.check_subsets(files[name], 2e-5, device=place, dtype="f32")


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_micro_batches_add_up(files, place, dtype):
    full.check_accumulation(files["qwen3-tied"], device=place, dtype=dtype)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", rules.KINDS)
def test_optimizers_are_the_reference(place, kind):
    full.check_optimizer(engine_for(place), kind)


@pytest.mark.parametrize("place", PLACES)
def test_norm(place):
    full.check_norm(engine_for(place))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name, kind", [("qwen2", "adamw"), ("qwen3", "adamw8bit"), ("gemma3", "adafactor")])
def test_steps_are_the_numpy_engines(files, place, name, kind):
    full.check_steps(files[name], kind, 1e-3, device=place, dtype="f32")


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", rules.KINDS)
def test_resuming_ends_in_the_same_bits(files, place, kind):
    full.check_resume(files["qwen3-tied"], kind, device=place)


@pytest.mark.parametrize("place", PLACES)
def test_a_norm_that_is_not_finite_changes_nothing(files, place):
    full.check_not_finite(files["llama"], device=place)
