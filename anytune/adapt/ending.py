"""The end of each command: the result is judged, proved in llama.cpp, and written in the forms that were asked for."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anytune.adapt import report
from anytune.adapt.measure import Measured
from anytune.adapt.partial import partial_path
from anytune.adapter.adapter import Adapter
from anytune.errors import UserError
from anytune.extras import install
from anytune.files import check_output

if TYPE_CHECKING:
    from anytune.model import Model


@dataclass
class Result:
    """adapter; facts: what was measured (JSON-able); success: whether it brings the student nearer to the teacher;
    measured: the same as numbers, by task."""

    adapter: Adapter
    facts: dict[str, Any]
    measured: Sequence[Measured] = ()
    label: str = "this adapter"

    @property
    def success(self) -> bool:
        return bool(self.facts["success"])

    def __str__(self) -> str:
        return report.text(self.facts, self.measured, self.label)


@dataclass(frozen=True)
class Outputs:
    """output: name.gguf, or a folder for peft (None: write nothing); peft: a folder beside it; intermediate: a folder
    for what is made on the way; verify: prove the result in llama.cpp, exact: over an F32 copy of the model; force:
    replace what is there."""

    output: str | os.PathLike | None = None
    verify: bool = True
    exact: bool = True
    threads: int | None = None
    peft: str | os.PathLike | None = None
    intermediate: str | os.PathLike | None = None
    force: bool = False


def check_outputs(outputs: Outputs, resume: bool = False) -> None:
    """UserError unless all that is asked for can be written; said before the work begins. resume: an interrupted run
    may have made it already, if it left something beside the output."""
    output, kept = outputs.output, outputs.intermediate
    force = outputs.force or (resume and output is not None and partial_path(output).exists())
    one_file = output is not None and Path(output).suffix.lower() in (".gguf", ".npz")
    check_output(output, force, folder=not one_file)
    check_output(outputs.peft, force, folder=True)
    if kept is None or not Path(kept).exists():
        return
    if not Path(kept).is_dir():
        raise UserError(f"{kept} is a file: name a folder.")
    if not force and any(Path(kept).iterdir()):
        raise UserError(f"{kept} already exists: choose another name, or use --force to replace its files.")


def finish(
    model: Model, adapter: Adapter, facts: dict[str, Any], measured: Sequence[Measured], outputs: Outputs, label: str
) -> Result:
    """Prove and write the adapter, unless it is worse than the student: then nothing is written."""
    facts = {**facts, "success": all(report.success(found) for found in measured)}
    result = Result(adapter, facts, measured, label)
    if not result.success:
        return result
    facts["verified"] = prove(model, adapter, outputs) if outputs.verify else None
    if facts["verified"] is not None and facts["verified"]["ok"] is False:
        facts["success"] = False
    elif outputs.output is not None:
        adapter.save(outputs.output, model.gguf)
        facts["paths"] = [str(outputs.output)]
        if outputs.peft is not None:
            adapter.save_peft(outputs.peft, model.gguf)
            facts["paths"].append(str(outputs.peft))
    return result


def prove(model: Model, adapter: Adapter, outputs: Outputs) -> dict[str, Any]:
    """The adapter in llama.cpp, over an F32 copy of the model if there is space. ok None: llama.cpp is missing."""
    from anytune.llamacpp.judge import available

    if not available():
        return {"ok": None, "why": f"it is not installed: {install('verify')}"}
    from anytune.llamacpp.verify import on_reference, verify

    need = 4 * model.gguf.n_parameters
    exact = outputs.exact and shutil.disk_usage(tempfile.gettempdir()).free > need + (1 << 30)
    with on_reference(model) as reference:
        found = verify(reference, adapter, exact=exact, threads=outputs.threads)
    told, change = found["with_adapter"], found["change"]
    ok = told["ok"] and found["base"]["ok"] and (change["ok"] or change["rms_anytune"] < 1e-3)
    return {
        "ok": bool(ok),
        "exact": exact,
        "kl_mean": told["kl_mean"],
        "kl_max": told["kl_max"],
        "limit": told["limit"],
        "error": change["relative_error"],
    }
