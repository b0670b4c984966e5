"""Training steps on all cores, quiet and with another process on one of them, against an older tree, in turns.

    python bench/threads.py --before ../anytune-before

--before: a checkout of the commit to compare with. The other process does nothing but count, bound to the first or to
the last core. Medians of steps; each round is one step of each tree without the other process, then with it on either.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import common

DEVICES = ("numpy", "cpu-bf16")


def count(core: int, running) -> None:
    """Keep one core busy while `running` is set."""
    os.sched_setaffinity(0, {core})
    while True:
        running.wait()
        for _ in range(100_000):
            pass


def contestants(args, model: Path, device: str) -> list[common.Child]:
    made = []
    for name, tree in (("before", Path(args.before).resolve()), ("now", common.ROOT)):
        command = [str(tree / "bench/steps.py"), str(model), "--shape", args.shape, "--device", device]
        env = common.environment(args.threads) | {"PYTHONPATH": str(tree)}
        made.append(common.Child(name, [*command, "--threads", str(args.threads)], env))
    return made


def main() -> None:
    options = common.parser(__doc__, rounds=9)
    options.add_argument("--before", required=True, help="a checkout to compare with")
    options.add_argument("--shape", default="1x512", help="examples x tokens of each")
    options.add_argument("--devices", default=",".join(DEVICES))
    options.add_argument("--into", default="threads", help="bench/results/INTO.json")
    args = options.parse_args()
    before, model, results = common.machine(), common.model_file(args.model), {}
    cores = os.sched_getaffinity(0)
    busy = {"busy_first": multiprocessing.Event(), "busy_last": multiprocessing.Event()}
    for core, running in zip((min(cores), max(cores)), busy.values(), strict=True):
        multiprocessing.Process(target=count, args=(core, running), daemon=True).start()
    states = ("quiet", *busy)
    for device in args.devices.split(","):
        children = contestants(args, model, device)
        rates: dict[str, dict[str, list[float]]] = {c.name: {s: [] for s in states} for c in children}
        for _ in range(args.rounds):
            for state in states:
                for child in children:
                    for name, running in busy.items():
                        running.set() if name == state else running.clear()
                    time.sleep(0.3)
                    rates[child.name][state].append(child.turn()["tokens_per_s"])
        for running in busy.values():
            running.clear()
        ends = {child.name: child.end() for child in children}
        medians = {n: {s: common.rounded(common.median(v)) for s, v in r.items()} for n, r in rates.items()}
        results[device] = {
            "tokens_per_s": medians,
            "all": rates,
            "ratio": {s: common.rounded(medians["now"][s] / medians["before"][s]) for s in states},
            "peak_rss_mib": {name: end["peak_rss_mib"] for name, end in ends.items()},
        }
        print(device, results[device]["tokens_per_s"], results[device]["ratio"], results[device]["peak_rss_mib"])
    common.save("threads", args, before, into=args.into, threads=args.threads, shape=args.shape, devices=results)


if __name__ == "__main__":
    main()
