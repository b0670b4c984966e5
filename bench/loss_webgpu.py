"""SmolLM2-135M trained through WebGPU beside the NumPy engine: the losses of every step, and llama.cpp on the adapter.

    python bench/loss_webgpu.py                          # both, 200 steps; the NumPy engine takes some five minutes
    python bench/loss_webgpu.py --folder F --only webgpu # one of them, for a machine that is without llama.cpp
    python bench/loss_webgpu.py --folder F               # the rest, and the comparison

Whole runs of `anytune train` on the e-mails of examples/email, with loss on the answers alone, from the same start.
What is found finished in --folder is not run again, so that the two may run on different machines. What a software
device gives (--steps 20 --context 64 is enough for one) goes to a result of its own.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path

import common

DEVICES = ("webgpu", "numpy")
WITHIN = 0.005  # of the NumPy engine's loss, each step


def train(model: Path, folder: Path, device: str, args) -> None:
    """Leaves folder/DEVICE.{json,gguf}."""
    before, out = common.machine(), folder / f"{device}.gguf"
    words = ["train", "-m", model, "-f", "examples/email/train.jsonl", "--assistant-loss-only", "--device", device]
    words += ["-c", args.context, "-ub", args.context, "-b", args.context, "--lora-rank", 8, "--lora-alpha", 16]
    words += ["--lr", "5e-4", "--epochs", 100, "--max-steps", args.steps]
    subprocess.run(
        common.anytune(*words, "--run-dir", folder / f"run-{device}", "-o", out, "-q"),
        env=common.environment(args.threads),
        cwd=common.ROOT,
        check=True,
    )
    (metrics,) = (folder / f"run-{device}").rglob("metrics.jsonl")
    rows = [json.loads(line) for line in metrics.read_text("utf-8").splitlines()]
    from anytune.engine.devices import engine_for

    engine = engine_for(device)
    (folder / f"{device}.json").write_text(
        json.dumps(
            {
                "machine": before,
                "versions": common.versions(),
                "commit": common.commit(),
                "device": device,
                "name": engine.identity().get("device", device),
                "software": device == "webgpu" and engine.device.software,
                "losses": [row["loss"] for row in rows],
                "tokens": sum(row.get("tokens", 0) for row in rows),
            }
        )
    )


def main() -> None:
    options = common.parser(__doc__)
    options.add_argument("--steps", type=int, default=200)
    options.add_argument("--context", type=int, default=256, help="tokens of a step")
    options.add_argument("--folder", help="where runs are kept; default: a temporary one")
    options.add_argument("--only", choices=DEVICES, help="one engine, no comparison")
    args = options.parse_args()
    before, model = common.machine(), common.model_file(args.model)
    with tempfile.TemporaryDirectory(prefix="anytune-bench-") as temporary:
        folder = Path(args.folder or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for device in [args.only] if args.only else DEVICES:
            if not (folder / f"{device}.json").exists():
                train(model, folder, device, args)
        if args.only:
            return
        runs = {device: json.loads((folder / f"{device}.json").read_text()) for device in DEVICES}
        done = subprocess.run(
            common.anytune("verify", "-m", model, "--lora", folder / "webgpu.gguf", "--device", "numpy"),
            env=common.environment(args.threads),
            cwd=common.ROOT,
            text=True,
            capture_output=True,
        )
    one, two = (runs[device]["losses"] for device in DEVICES)
    apart = [abs(a - b) / b for a, b in zip(one, two, strict=True)]
    common.save(
        "loss_webgpu",
        args,
        before,
        "loss_webgpu_software" if runs["webgpu"].get("software") else "",
        steps=len(one),
        tokens_a_step=args.context,
        most_apart=common.rounded(max(apart)),
        at_step=apart.index(max(apart)) + 1,
        last_apart=common.rounded(apart[-1]),
        within=max(apart) <= WITHIN,
        verify={"agrees": done.returncode == 0, "said": (done.stdout or done.stderr).strip().splitlines()[-12:]},
        runs=runs,
    )


if __name__ == "__main__":
    main()
