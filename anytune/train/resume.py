"""Where a run continues: finds the checkpoint and the run folder that --resume-from means, or starts over."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from anytune.errors import UserError
from anytune.train import checkpoint as ckpt
from anytune.train.checkpoint import Checkpoint
from anytune.train.run_folder import RunFolder, new_run, read_json, write_json
from anytune.train.settings import EXACT, TrainSettings

Say = Callable[[str], None]


def open_run(
    settings: TrainSettings, name: str, identity: dict, record: dict, say: Say
) -> tuple[RunFolder, str, Checkpoint | None]:
    """The run's folder, its id and the checkpoint to continue from (None: from the start).

    name: for a new folder; identity: see checkpoint.py; record: what settings.json shall say besides.
    Raises UserError if the checkpoint is torn, missing, or of another base, data or setting (naming which).
    """
    found = _find(settings, identity, say)
    if found is not None:
        changed = ckpt.differences(found.info["identity"], identity)
        if changed:
            raise UserError(
                f"{found.path} cannot be continued, because it was made with other settings: {'; '.join(changed)}. "
                "Use the same ones, or start over without --resume-from."
            )
        run = _run_of(found, settings)
        if run is not None:
            return run, found.info["run_id"], found
    elif (run := _unstarted(settings, identity)) is not None:
        return run, read_json(run.settings)["run_id"], None
    if settings.checkpoint_save_dir and found is None:
        _refuse_other_runs(Path(settings.checkpoint_save_dir))
    run = new_run(settings.run_dir, settings.run_name or name, settings.checkpoint_save_dir)
    run_id = found.info["run_id"] if found else secrets.token_hex(8)
    write_json(run.settings, dict(record, run_id=run_id, identity=identity))
    return run, run_id, found


def recorded(candidates: Sequence[TrainSettings], identity: Callable[[TrainSettings], dict]) -> int:
    """Which of these settings, a list that begins with what a new run takes, the run to continue has; 0 if none.

    identity(settings): as far as it is known before the trainee is made.
    """
    first = candidates[0]
    if first.resume_from is None or len(candidates) == 1:
        return 0
    if first.resume_from == "auto":
        folders = [folder.parent for one in candidates for folder in _places(one, identity(one))]
        folders += [Path(first.checkpoint_save_dir)] if first.checkpoint_save_dir else []
    else:
        folders = [Path(first.resume_from), Path(first.resume_from).parent]
    files = [path / ckpt.INFO for home in folders for path in ckpt.listing(home) + ckpt.listing(home / "checkpoints")]
    files += [home / name for home in folders for name in (ckpt.INFO, "settings.json")]
    for file in files:
        then = (read_json(file) or {}).get("identity")
        if isinstance(then, dict):
            for number, one in enumerate(candidates):
                if then.get("settings") == identity(one)["settings"]:
                    return number
    return 0


def recorded_engine(settings: TrainSettings, identity: dict) -> dict:
    """What engine the checkpoint to continue from was made with ({} if there is none).

    identity: as far as it is known before the trainee is made. Nothing is verified here but the type.
    """
    where = settings.resume_from
    if where is None:
        return {}
    engines = (info.get("engine") for info in _infos(_places(settings, identity) if where == "auto" else _given(where)))
    return next((engine for engine in engines if isinstance(engine, dict)), {})


def recorded_settings(where: str | None) -> tuple[dict, dict]:
    """(settings that a resumed run must share, what is trained) of the checkpoint that --resume-from names; both empty
    for auto, and where there is none. Nothing is verified: open_run() compares whatever is made of them."""
    if where in (None, "auto"):
        return {}, {}
    identity = next((found for info in _infos(_given(where)) if isinstance(found := info.get("identity"), dict)), {})
    parts = (identity.get(name) for name in ("settings", "trainee"))
    settings, trainee = (part if isinstance(part, dict) else {} for part in parts)
    return {name: settings[name] for name in EXACT if name in settings}, trainee


def recorded_dates(settings: TrainSettings, base: str) -> list[dict]:
    """The identities of the runs that --resume-from may mean, the likeliest first, if their chat template told a date.

    base: the sha256 of the model's file.
    """
    if settings.resume_from == "auto":
        folders = _places(settings, {"base": base})
        homes = [Path(settings.run_dir)] if settings.run_dir else [folder.parent for folder in folders]
    else:
        folders = _given(settings.resume_from)
        homes = folders[:1]
    found: list[dict] = []
    for info in (*_infos(folders), *(read_json(home / "settings.json") or {} for home in homes)):
        identity = info.get("identity")
        if isinstance(identity, dict) and isinstance(identity.get("date"), str) and identity.get("base") == base:
            identity.pop("trainee", None)
            if identity not in found:
                found.append(identity)
    return found


def check_resume_from(where: str | None) -> None:
    """Raise UserError unless --resume-from names a folder with checkpoints, or one of them: before anything is loaded.

    Its contents are verified by open_run().
    """
    if where in (None, "auto"):
        return
    path = Path(where)
    if not path.is_dir():
        left = [found.name for found in ckpt.listing(path.parent)]
        there = (
            f"{path.parent} has {', '.join(reversed(left))} (--keep-checkpoints says how many are kept)"
            if left
            else "give a checkpoint, a run, or auto"
        )
        raise UserError(f"--resume-from {path}: there is no such folder; {there}.")
    if not ckpt.is_one(path) and not any(map(ckpt.listing, _given(where))):
        raise UserError(f"--resume-from {path}: there is no checkpoint in it; give a checkpoint, a run, or auto.")


def _given(where: str | Path) -> list[Path]:
    """Folders in which a named --resume-from may have its checkpoints."""
    return [Path(where), Path(where) / "checkpoints"]


def _infos(folders: Sequence[Path]) -> Iterator[dict]:
    """checkpoint.json of each checkpoint in these folders, and of those that are checkpoints themselves."""
    for folder in folders:
        for path in (*ckpt.listing(folder), folder):
            yield read_json(path / ckpt.INFO) or {}


def _places(settings: TrainSettings, identity: dict) -> list[Path]:
    """Folders in which --resume-from auto looks for checkpoints, the likeliest first."""
    if settings.checkpoint_save_dir:
        return [Path(settings.checkpoint_save_dir)]
    if settings.run_dir:
        return [Path(settings.run_dir) / "checkpoints"]
    runs = [(file.stat().st_mtime, file) for file in Path("runs").glob("*/settings.json")]
    known = [
        (file.parent / "checkpoints", (read_json(file) or {}).get("identity")) for _, file in sorted(runs, reverse=True)
    ]
    wanted = [(key, value) for key, value in identity.items() if key != "date"]  # the data's fingerprint holds it
    return [
        folder
        for folder, then in known
        if isinstance(then, dict) and all(then.get(key) == value for key, value in wanted)
    ]


def _find(settings: TrainSettings, identity: dict, say: Say) -> Checkpoint | None:
    where = settings.resume_from
    if where is None:
        return None
    if where != "auto":
        return _named(Path(where), say)
    found = (ckpt.newest(folder, say) for folder in _places(settings, identity))
    return next((checkpoint for checkpoint in found if checkpoint is not None), None)


def _named(path: Path, say: Say) -> Checkpoint:
    check_resume_from(str(path))
    for folder in _given(path):
        if ckpt.listing(folder):
            found = ckpt.newest(folder, say)
            if found is None:
                raise UserError(f"--resume-from {path}: none of its checkpoints is valid; start over.")
            return found
    return ckpt.load(path)


def _run_of(found: Checkpoint, settings: TrainSettings) -> RunFolder | None:
    """The folder of the run that wrote the checkpoint, if it is still there; None: make one."""
    places = [found.path.resolve().parent.parent]
    if settings.run_dir:
        places = [Path(settings.run_dir)]
    elif "/" not in found.info["run"] and "\\" not in found.info["run"]:
        places.append(Path("runs") / found.info["run"])
    for place in places:
        if (read_json(place / "settings.json") or {}).get("run_id") == found.info["run_id"]:
            folder = Path(settings.checkpoint_save_dir or found.path.parent)
            if folder.resolve() != found.path.parent.resolve():
                _refuse_other_runs(folder)
            folder.mkdir(parents=True, exist_ok=True)
            return RunFolder(place, folder)
    return None


def _unstarted(settings: TrainSettings, identity: dict) -> RunFolder | None:
    """With auto: the named run folder, if this same run began there and had no checkpoint yet."""
    if settings.resume_from != "auto" or not settings.run_dir:
        return None
    path = Path(settings.run_dir)
    old = read_json(path / "settings.json")
    if old is None or not isinstance(old.get("run_id"), str) or not isinstance(old.get("identity"), dict):
        return None
    changed = ckpt.differences(old["identity"], identity)
    if changed:
        raise UserError(
            f"--run-dir {path} contains a run with other settings: {'; '.join(changed)}. Use the same ones, or "
            "another folder."
        )
    folder = Path(settings.checkpoint_save_dir or path / "checkpoints")
    folder.mkdir(parents=True, exist_ok=True)
    return RunFolder(path, folder)


def _refuse_other_runs(folder: Path) -> None:
    if ckpt.listing(folder):
        raise UserError(
            f"--checkpoint-save-dir {folder} already contains checkpoints of a run: continue it with --resume-from "
            "auto, or name another folder."
        )
