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
        [
            sys.executable,
            "-c",
            f"import sys; from anytune.cli.main import cli; dict(cli.commands); print({heavy} & set(sys.modules))",
        ],
        capture_output=True,
        text=True,
    )
    assert done.stdout == "set()\n", done.stdout + done.stderr


def test_a_command_does_not_import_the_others():
    code = """
import sys
from anytune.cli.main import COMMANDS, run
run(["pull", "--help"])
print(sorted(module for module in COMMANDS.values() if f"anytune.cli.{module}" in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "['pull']", done.stdout + done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="each module gets a process of its own by fork")
def test_any_module_can_be_imported_first():
    done = subprocess.run([sys.executable, "-c", FIRST, *MODULES], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0 and len(MODULES) > 150, done.stderr
    assert not done.stdout


# what of the folder model is below adapters' files, whose names it knows: tables of architectures and their parts
TABLES = {"architecture", "architectures", "ffn", "mixers", "naming", "part", "rope"}


def graph() -> dict[str, set[str]]:
    """Each module with those that it imports, anywhere in it but under TYPE_CHECKING."""
    root = Path(anytune.__file__).parent
    files = {}
    for path in root.rglob("*.py"):
        parts = path.relative_to(root.parent).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return {name: imports(name, path, files) - {name} for name, path in files.items()}


def imports(name: str, path: Path, files: dict[str, Path]) -> set[str]:
    package, found = name if path.stem == "__init__" else name.rpartition(".")[0], set()
    waiting = [ast.parse(path.read_text("utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            waiting += node.orelse
            continue
        waiting += ast.iter_child_nodes(node)
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            parts = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parts, *([node.module] if node.module else [])])
            names = [f"{base}.{alias.name}" for alias in node.names]
        for wanted in names:
            while wanted and wanted not in files:
                wanted = wanted.rpartition(".")[0]
            found.add(wanted)
    return found - {""}


def circles(graph: dict[str, set[str]]) -> list[str]:
    """What is left of a graph when all that imports nothing of the rest is taken away, again and again."""
    left = dict(graph)
    while free := [name for name, others in left.items() if not others & set(left)]:
        for name in free:
            del left[name]
    return sorted(left)


def folder(module: str) -> str:
    parts = module.split(".")[1:]
    return "model: tables" if parts[0] == "model" and len(parts) > 1 and parts[1] in TABLES else parts[0]


def test_no_module_and_no_folder_imports_what_imports_it():
    modules = graph()
    del modules["anytune"]  # imports public names when they are asked for
    assert not circles(modules)
    folders: dict[str, set[str]] = {}
    for name, others in modules.items():
        own = folders.setdefault(folder(name), set())
        own |= {folder(other) for other in others if other != "anytune"} - {folder(name)}
    assert not circles(folders)


def test_a_circle_is_seen(tmp_path):
    texts = {"a": "def f():\n    from anytune.b import x", "b": "from . import a", "c": "import numpy"}
    files = {f"anytune.{name}": tmp_path / f"{name}.py" for name in texts}
    for name, text in texts.items():
        files[f"anytune.{name}"].write_text(text)
    assert circles({name: imports(name, path, files) for name, path in files.items()}) == ["anytune.a", "anytune.b"]


# folder -> what of anytune it may know beside itself; a folder that is not here: all but the command line
KNOWS = {
    "gguf": {"errors", "files", "simd"},
    "simd": set(),
    "text": {"errors", "gguf"},
    "mail": {"errors", "files"},
    "engine": {"errors", "files", "fpga", "gguf", "locks", "memory", "simd", "units"},
    "model": {"adapter", "arguments", "engine", "errors", "generation", "gguf", "memory", "text"},
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
