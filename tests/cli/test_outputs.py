"""No command writes over what it reads, however the output is spelled; a folder that cannot be written is told so."""

import concurrent.futures
import contextlib
import errno
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import anytune
from anytune.cli.main import cli as root
from anytune.errors import UserError
from anytune.folder import new_folder
from anytune.files import atomic_write, cannot_write, check_output, spare_inputs

# command -> (arguments: {out} is the output, other names in braces are inputs; the suffix that the output needs)
WRITES = {
    "train": ("-m {m} -f {d} -f {e} --val-file {v} --lora {a} --chat-template {t} -o {out}", ".gguf"),
    "train --full": ("-m {m} -f {d} --val-file {v} --chat-template {t} -o {out}", ".gguf"),
    "finetune": ("-m {m} -f {d} --val-file {v} --chat-template {t} -o {out}", ".gguf"),
    "quantize": ("{m} {out} Q8_0 --imatrix {i}", ""),
    "imatrix": ("-m {m} -f {d} -o {out}", ""),
    "perplexity": ("-m {m} --lora {a} -f {d} --kl-divergence-base {out}", ""),
    "evaluate compare": (
        "-m {m} --lora {a} --lora other={b} -f {d} --chat-template {t} --other {n} --judge {j} -o {out}",
        ".json",
    ),
    "evaluate style": ("-m {m} --lora {a} -f {d} --chat-template {t} -o {out}", ".html"),
    "evaluate biomed": ("-m {m} --lora {a} -f {d} --test {v} -o {out}", ".json"),
    "export peft": ("-m {m} --lora {a} --lora-scaled {b}:0.5 -o {out}", ""),
    "export gguf": ("-m {m} --lora {a} --lora-scaled {b}:0.5 -o {out}", ".gguf"),
    "export card": ("-m {m} --lora {a} --scores {r} -o {out}", ".md"),
    "export hf": ("-m {m} --lora {a} --chat-template {t} -o {out}", ""),
    "export mlx": ("-m {m} --lora {a} --chat-template {t} -o {out}", ""),
    "export merge": ("-m {m} --lora {a} --lora-scaled {b}:0.5 --imatrix {i} -f {d} -o {out}", ""),
    "export merge --absorb 4": (
        "-m {m} --lora {a} --imatrix {i} -f {d} --calibration {v} -o x.gguf --residual-lora {out}",
        ".gguf",
    ),
    "export ollama": ("-m {m} --lora {a} --imatrix {i} -f {d} -o {out}", ""),
    "bench": ("-m {m} --train-file {d} -o {out}", ""),
    "adapt distill": (
        "-m {m} -f {d} --val-file {v} --chat-template {t} --system-file {s} --shots {h} --teacher-lora {a} "
        "--teacher-model {n} --guard-text {g} --drift-text {r} -o {out}",
        ".gguf",
    ),
    "adapt compress": (
        "-m {m} --lora {a} --rank 1 -f {d} --val-file {v} --chat-template {t} --drift-text {r} -o {out}",
        ".gguf",
    ),
    "adapt repair": (
        "-m {m} --reference {n} --lora {a} -f {d} --val-file {v} --chat-template {t} --guard-text {g} "
        "--drift-text {r} -o {out}",
        ".gguf",
    ),
    "adapt merge": ("-m {m} --lora {a} -f {d} --lora {b} -f {e} --guard-text {g} --drift-text {r} -o {out}", ".gguf"),
    "adapt collect": (
        "-m {m} -f {d} --val-file {v} --chat-template {t} --system-file {s} --shots {h} --teacher-lora {a} "
        "--teacher-model {n} --guard-text {g} --drift-text {r} -o {out}",
        ".npz",
    ),
    "adapt solve": ("{d} -o {out}", ".gguf"),
    "quantize lower": ("-m {m} -f {d} -o {out}", ".gguf"),
    "fpga simulate": ("-m {m} --vcd {out}", ".vcd"),
    "embed": ("-m {m} -f {d} -o {out}", ".npz"),
    "generate": ("-m {m} --lora {a} --chat-template {t} -p x -o {out}", ".jsonl"),
    "generate -f": ("{f} -m {m} --lora {a} -o {out}", ".txt"),
    "quantize search": ("-m {m} --budget 4bpw -f {d} --imatrix {i} -o {out}", ""),
    "quantize lower --output-adapter": ("{out} -m {m} -f {d}", ".gguf"),
    "doctor --report": ("{out}", ".json"),
    "doctor --kernels": ("{out}", ""),
    "fpga export": ("-o {out}", ""),
    "fpga route": ("-o {out}", ".json"),
}
MAKES_FOLDERS = {"export peft", "export hf", "export mlx", "export ollama", "doctor --kernels", "fpga export"}
NEEDS_NOTHING = {"doctor --report", "doctor --kernels", "fpga export", "fpga route"}  # no input that could stop them
WRITING_FLAGS = {"-o", "--output", "--output-adapter", "--save", "--report", "--vcd", "--kernels"}
FOLDERS = {  # commands that write files of known names into a folder: the folder, and one of them
    "train": ("-m {m} -f {d} --val-file {v} --run-dir {out}", "train.log"),
    "export lmstudio": ("-m {m} --lora {a} -o . --publisher {out} --name n", "n"),
    "data build email": ("{d} {e} --from me@example.org -o {out}", "train.jsonl"),
    "data build pubmedqa": ("{d} --test {v} -o {out}", "recipe.json"),
}
FROM_FOLDERS = {  # commands that read whole folders
    "convert": "{f} -o {out}",
    "export gguf": "-m {m} --lora {f} -o {out}",
    "train": "-m {m} -f {f} -o {out}",
}
ONLY_READS = {
    "serve",
    "models",
    "pull",
    "studio",
    "info",
    "data preview",
    "chat",
    "verify",
    "monitor",
    "runs list",
    "runs clean",
    "completion",
    "evaluate score",
    "fpga plan",
}


def commands(group=root, above=()):
    """(name, command) of all."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*above, name))
            continue
        yield " ".join((*above, name)), command
        yield from ((" ".join((*above, name, part)), one) for part, one in getattr(command, "parts", {}).items())


def test_every_command_is_known_here():
    writes, known = {name.partition(" -")[0] for name in [*WRITES, *FOLDERS, *FROM_FOLDERS]}, dict(commands())
    assert set(known) == writes | ONLY_READS, "a new command belongs into WRITES (it asks files.check_output)"
    for name, command in known.items():
        flags = {flag for param in command.params for flag in param.opts}
        if name in ONLY_READS:
            assert not flags & WRITING_FLAGS, f"{name} writes: it belongs into WRITES"
        else:
            assert "--force" in flags, f"{name} has no --force"


def aliases(path, suffix):
    """Other names of a file, in new places of its folder."""
    folder = path.parent
    places = [folder / f"{kind}{suffix or path.suffix}" for kind in ("symbolic", "chain", "hard", "ups")]
    places[0].symlink_to(path.name)
    places[1].symlink_to(places[0])
    os.link(path, places[2])
    (folder / "sub").mkdir(exist_ok=True)
    yield path
    yield folder / "sub" / ".." / path.name
    yield f"{folder}//./{path.name}"
    yield from places[:3]
    swapped = folder / path.name.swapcase()
    if swapped.exists():  # a disk that does not tell cases apart
        yield swapped


def fill(folder, pattern, out=None, suffix=""):
    """The arguments, and role -> input; inputs are small files that no command could use."""
    roles = sorted({pattern[i + 1 : i + 2] for i, c in enumerate(pattern) if c == "{"} - {"o"})
    inputs = {role: folder / f"Input-{role}{suffix}" for role in roles}
    for path in inputs.values():
        path.write_text("[]" if suffix == ".json" else "From me@example.org Mon Jan 1 00:00:00 2024\n")
    return inputs, lambda out: [part.format(**inputs, out=out) for part in pattern.split()]


def contents(folder):
    return {path: (path.read_bytes(), path.is_symlink()) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", WRITES)
def test_no_command_overwrites_what_it_reads(cli, tmp_path, monkeypatch, name):
    pattern, suffix = WRITES[name]
    for role in fill(tmp_path, pattern, suffix=suffix)[0]:
        folder = tmp_path / role
        folder.mkdir()
        monkeypatch.chdir(folder)
        inputs, args = fill(folder, pattern, suffix=suffix)
        for alias in aliases(inputs[role], suffix):
            before = contents(folder)
            outcome = cli(*name.split(), *args(alias), code=2)
            assert "itself" in outcome.err and "overwritten" in outcome.err, (role, alias, outcome.err)
            assert contents(folder) == before


@pytest.mark.parametrize("name", WRITES)
def test_every_command_has_one_rule_for_outputs(cli, tmp_path, monkeypatch, name):
    """What exists is refused in one sentence, unless --force is given; folders above it are made."""
    monkeypatch.chdir(tmp_path)
    pattern, suffix = WRITES[name]
    args = fill(tmp_path, pattern, suffix=suffix)[1]
    out = held = tmp_path / f"out{suffix}"
    if name in MAKES_FOLDERS:
        out.mkdir()
        held = out / "README.md"
    held.write_text("what was there")
    before = contents(tmp_path)
    refused = cli(*name.split(), *args(out), code=2).err
    assert f"{out} already exists: choose another name, or use --force to replace it." in refused
    assert contents(tmp_path) == before
    if name not in NEEDS_NOTHING:
        assert "already exists" not in cli(*name.split(), *args(out), "--force", code=2).err
        assert contents(tmp_path) == before
        cli(*name.split(), *args(tmp_path / "new" / "folder" / f"out{suffix}"), code=2)
        assert (tmp_path / "new" / "folder").is_dir()
    other = tmp_path / f"other{suffix}"
    other.write_text("x") if name in MAKES_FOLDERS else other.mkdir()
    assert " name a f" in cli(*name.split(), *args(other), "--force", code=2).err


@pytest.mark.parametrize("name", FOLDERS)
def test_files_in_a_folder_have_the_same_rule(cli, tmp_path, monkeypatch, name):
    pattern, inside = FOLDERS[name]
    monkeypatch.chdir(tmp_path)
    args = fill(tmp_path, pattern)[1]
    held = tmp_path / "out" / inside
    if name == "export lmstudio":
        held.mkdir(parents=True)
        held /= "model.gguf"
    held.parent.mkdir(exist_ok=True)
    held.write_text("what was there")
    before = contents(tmp_path)
    said = cli(*name.split(), *args("out"), code=2).err
    assert ("already exists" in said) != (name == "train") and contents(tmp_path) == before
    assert "already exists" not in cli(*name.split(), *args("out"), "--force", code=2).err


@pytest.mark.parametrize("name", FOLDERS)
def test_no_file_of_a_folder_that_is_written_is_overwritten(cli, tmp_path, monkeypatch, name):
    pattern, inside = FOLDERS[name]
    for role in fill(tmp_path, pattern)[0]:
        folder = tmp_path / role
        (folder / "out").mkdir(parents=True)
        monkeypatch.chdir(folder)
        inputs, args = fill(folder, pattern)
        os.link(inputs[role], folder / "out" / inside)
        before = contents(folder)
        assert "itself" in cli(*name.split(), *args("out"), code=2).err
        assert contents(folder) == before


@pytest.mark.parametrize("name", FROM_FOLDERS)
def test_no_file_of_a_folder_that_is_read_is_overwritten(cli, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in" / "sub").mkdir(parents=True)
    inputs, _ = fill(tmp_path, FROM_FOLDERS[name].replace("{f}", ""))
    inner = tmp_path / "in" / "sub" / "inner.gguf"
    inner.write_text("x")
    (tmp_path / "to").symlink_to("in")
    for alias in (*aliases(inner, ".gguf"), tmp_path / "to" / "sub" / "inner.gguf"):
        before = contents(tmp_path)
        args = (part.format(**inputs, f=tmp_path / "in", out=alias) for part in FROM_FOLDERS[name].split())
        assert "itself" in cli(*name.split(), *args, code=2).err and contents(tmp_path) == before


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["symlink", "hard link", "folder link", "up", "dot"]), max_size=5), st.booleans())
def test_a_file_is_known_by_any_chain_of_links_and_spellings(tmp_path_factory, steps, of_folder):
    folder = Path(os.path.realpath(tmp_path_factory.mktemp("links")))
    (folder / "in").mkdir()
    path = folder / "in" / "data"
    path.write_text("x")
    source = path.parent if of_folder else path
    for number, step in enumerate(steps):
        place = folder / f"{step}{number}"
        if step == "symlink":
            place.symlink_to(path)
        elif step == "hard link":
            os.link(path, place, follow_symlinks=True)
        elif step == "folder link":
            place.symlink_to(path.parent, target_is_directory=True)
            place /= path.name
        elif step == "up":
            real = Path(os.path.realpath(path.parent))
            place = real / ".." / real.name / path.name
        else:
            place = f"{path.parent}//./{path.name}"
        path = Path(place)
    with pytest.raises(UserError, match="the data itself"):
        spare_inputs([None, path], [("the model", None), ("the data", source)])
    spare_inputs([folder / "new", folder / "in" / "new"], [("the data", source), ("the text", "-")])


@pytest.mark.parametrize("name", ["train", "embed"])
def test_the_file_behind_standard_input_is_not_overwritten(tmp_path, model, name):
    path = tmp_path / {"train": "in.gguf", "embed": "in.npz"}[name]
    path.write_text('{"prompt": "a", "completion": "b"}\n')
    with path.open("rb") as file:
        done = subprocess.run(
            [sys.executable, "-m", "anytune", name, "-m", model, "-f", "-", "-o", path],
            stdin=file,
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(Path(anytune.__file__).parents[1])},
        )
    assert done.returncode == 2 and "itself" in done.stderr and path.read_text().startswith("{"), done.stderr


def test_only_a_full_disk_is_told_to_make_room(tmp_path):
    told = {
        code: str(cannot_write("out", OSError(code, os.strerror(code))))
        for code in (errno.ENOSPC, errno.EROFS, errno.EACCES)
    }
    assert [("free some space" in text) for text in told.values()] == [True, False, False]
    assert "ead-only file system" in told[errno.EROFS]


def test_an_output_below_a_file_is_told_so(tmp_path):
    (tmp_path / "data").touch()
    for inner in ("x.gguf", "sub/x.gguf"):
        with pytest.raises(UserError, match=r"x.gguf cannot be written, because .*data is a file"):
            check_output(tmp_path / "data" / inner)


@pytest.mark.parametrize("stopped", [None, "before", 0, 1])
@pytest.mark.parametrize("link", [False, True])
def test_a_folder_that_is_replaced_is_the_old_or_the_new_one(tmp_path, monkeypatch, stopped, link):
    """stopped: in the block, or at that rename."""
    real, replace, calls = tmp_path / "out", os.replace, []
    real.mkdir()
    (real / "a.json").write_text("old")
    path = tmp_path / "link" if link else real
    if link:
        path.symlink_to(real)

    def pressed(source, target):
        calls.append(source)
        if len(calls) - 1 == stopped:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", pressed)
    with contextlib.suppress(KeyboardInterrupt), new_folder(path, force=True) as made:
        (made / "b.json").write_text("new")
        if stopped == "before":
            raise KeyboardInterrupt
    names = [entry.name for entry in path.iterdir()]
    assert names == (["b.json"] if stopped is None else ["a.json"]) and path.is_symlink() == link
    assert {entry.name for entry in tmp_path.iterdir()} == {"out", path.name}


def test_what_a_killed_process_left_goes_when_the_file_is_written_again(tmp_path):
    left, fresh, other = (tmp_path / f".{name}.tmp" for name in ("out.bin.a", "out.bin.b", "o.bin.c"))
    with atomic_write(tmp_path / "out.bin") as file:
        (held,) = tmp_path.iterdir()
        for path in (left, fresh, other):
            path.write_bytes(b"half")
        for path in (left, held, other):
            os.utime(path, (0, 0))
        with atomic_write(tmp_path / "out.bin") as again:
            again.write(b"first")
        assert set(tmp_path.iterdir()) == {tmp_path / "out.bin", fresh, held, other}
        file.write(b"second")
    assert (tmp_path / "out.bin").read_bytes() == b"second"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
def test_a_pipe_is_written_into_and_never_replaced(cli, tmp_path, model):
    """As /dev/null and /dev/stdout are, which a rename would turn into files."""
    pipe, plain = tmp_path / "pipe.gguf", tmp_path / "plain.gguf"
    os.mkfifo(pipe)
    for args in (["quantize", model, "OUT", "Q8_0"], ["generate", "-m", model, *"-p x -n 2 -s 1 -o OUT".split()]):
        if args[0] == "generate":
            pipe, plain = pipe.rename(tmp_path / "pipe.txt"), tmp_path / "plain.txt"
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            came = pool.submit(pipe.read_bytes)
            cli(*(pipe if arg == "OUT" else arg for arg in args), code=0)
        cli(*(plain if arg == "OUT" else arg for arg in args), code=0)
        assert pipe.is_fifo() and came.result() == plain.read_bytes()
    with pytest.raises(UserError, match="name a folder"):
        check_output(pipe, True, folder=True)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a file that is always full is Linux's")
def test_a_full_disk_is_told_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr("anytune.files.tempfile.TemporaryFile", lambda **_: open("/dev/full", "wb"))
    with pytest.raises(UserError, match="cannot be written: No space left on device; free some space"):
        check_output(tmp_path / "out.gguf")


def test_a_disk_that_fills_up_while_something_is_written_is_told_by_name(cli, tmp_path, model, monkeypatch):
    from anytune.adapt.partial import Partial

    def full(_handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    said = cli("generate", "-m", model, "-p", "x", "-n", "2", "-o", tmp_path / "answers.txt", code=2).err
    assert "answers.txt cannot be written" in said and "free some space" in said
    with pytest.raises(UserError, match="a.gguf.partial cannot be written.*free some space"):
        Partial(tmp_path / "a.gguf", {}).save({})
    assert not [path for path in tmp_path.iterdir() if "answers" in path.name or "partial" in path.name]


def test_a_folder_that_may_not_be_written_is_told_before_its_room(cli, tmp_path, model, chats, monkeypatch):
    def refuse(*_args, **_options):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    for place in ("anytune.train.preflight", "anytune.files"):  # imported before its source is changed
        monkeypatch.setattr(f"{place}.try_writing", refuse)
    for args in (
        ["quantize", model, tmp_path / "q.gguf", "Q8_0"],
        ["train", "-m", model, "-f", chats, "-o", tmp_path / "a.gguf", "--run-dir", tmp_path / "run"],
        ["export", "hf", "-m", model, "-o", tmp_path / "hf"],
    ):
        said = cli(*args, code=2).err
        assert "ead-only file system" in said and "free some space" not in said
