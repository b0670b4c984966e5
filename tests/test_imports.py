"""Every module of anytune can be the first one that a process imports, and folders know only what they should."""

import ast
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import anytune

MODULES = sorted(m.name for m in pkgutil.walk_packages(anytune.__path__, "anytune.") if not m.name.endswith("__main__"))
FIRST = """
import importlib, os, sys
import amaranth, click, fastapi, jinja2, numba, numpy, rich, safetensors, torch, triton, uvicorn, wgpu, xllamacpp
for module in sys.argv[1:]:
    if (child := os.fork()) == 0:
        try:
            importlib.import_module(module)
        except BaseException as error:
            print(f"{module}: {type(error).__name__}: {error}", flush=True)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
"""


def test_the_command_line_starts_without_what_only_some_need():
    heavy = "{'numba', 'numpy', 'torch', 'transformers', 'triton', 'wgpu', 'xllamacpp'}"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys, anytune.cli.main; print({heavy} & set(sys.modules))"],
        capture_output=True,
        text=True,
    )
    assert done.stdout == "set()\n", done.stdout + done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="each module gets a process of its own by fork")
def test_any_module_can_be_imported_first():
    done = subprocess.run([sys.executable, "-c", FIRST, *MODULES], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0 and len(MODULES) > 150, done.stderr
    assert not done.stdout


# folder -> what of anytune it may know beside itself; a folder that is not here: all but the command line
KNOWS = {
    "gguf": {"errors", "files"},
    "text": {"errors", "gguf"},
    "mail": {"errors", "files"},
    "engine": {"errors", "files", "fpga", "gguf", "memory", "units"},
    "model": {"adapter", "arguments", "engine", "errors", "generation", "gguf", "memory", "quantization", "text"},
    "likelihood": {"adapter", "errors", "files", "model", "text"},
    "adapt": {
        "adapter",
        "engine",
        "errors",
        "export",
        "extras",
        "files",
        "generation",
        "gguf",
        "likelihood",
        "llamacpp",
        "memory",
        "model",
        "quantization",
        "evaluation",
        "text",
        "train",
        "units",
    },
    "quantization": {"adapter", "engine", "errors", "files", "gguf", "likelihood", "memory", "model", "text", "units"},
}


def imported(path: Path) -> set[str]:
    """Parts of anytune (folders, or files beside them) that a file imports by their whole names, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("anytune.")}
    return found


def test_folders_import_only_what_they_may():
    ran, root = set(), Path(anytune.__file__).parent
    for path in root.rglob("*.py"):
        part = path.relative_to(root).parts[0]
        others = imported(path) - {part}
        if part not in ("cli", "__main__.py"):
            assert "cli" not in others, path
        if part in KNOWS:
            assert others <= KNOWS[part], (path, others - KNOWS[part])
            ran.add(part)
    assert ran == set(KNOWS)
