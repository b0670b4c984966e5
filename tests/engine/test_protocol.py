"""What models and commands ask of an engine is in its specification, and what that names an engine has."""

import ast
from pathlib import Path

import anytune
from anytune.engine.base import Engine
from anytune.engine.budget import Budget, Dry
from anytune.engine.numpy.engine import NumpyEngine

ROOT = Path(anytune.__file__).parent
OWN = [
    "fpga",
    *(f"engine/{name}" for name in ("numpy", "torch", "webgpu", "cpu_bf16", "fpga_sim.py")),
]  # engines' own code
DECODER = {"attend_latent", "attend_again"}  # model/decoder.py adds them to an engine, for layers that ask for them


def specified(*protocols: type) -> set[str]:
    bases = {base for protocol in protocols for base in protocol.__mro__ if base is not object}
    return {name for base in bases for name in (*vars(base), *vars(base).get("__annotations__", ()))}


def asked(path: Path) -> set[str]:
    """Attributes of what is called e or engine."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Attribute):
            of = node.value.id if isinstance(node.value, ast.Name) else getattr(node.value, "attr", None)
            if of == "engine" or of == "e" and path.parent.name in ("model", "mixers", "ffn", "engine"):
                found.add(node.attr)
    return found


def test_everything_that_is_asked_of_an_engine_is_specified():
    known = specified(Engine, Budget, Dry) | DECODER
    files = [p for p in ROOT.rglob("*.py") if not any(p.is_relative_to(ROOT / name) for name in OWN)]
    missing = {f"{p.relative_to(ROOT)}: {name}" for p in files for name in asked(p) - known}
    assert len(files) > 300 and not missing


def test_the_reference_has_everything_that_is_specified():
    needed = {name for name in specified(Engine) if not name.startswith("_")} - {"fp8_error"}  # of has_fp8 alone
    engine = NumpyEngine(1)
    assert {name for name in needed if not hasattr(engine, name)} == set()
