"""Tables in the docs, made from bench/results/*.json, so that no number in them is typed by hand.

python bench/table.py            # rewrite every place between <!-- numbers:NAME --> and <!-- /numbers -->
python bench/table.py --check    # exit code 1 if a place differs from the results
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from tables import SOURCES, TABLES, figures
from tables.render import result, where

ROOT = Path(__file__).resolve().parents[1]
PLACE = re.compile(r"(<!-- numbers:(\w+) -->\n)(.*?)(<!-- /numbers -->)", re.DOTALL)


def filled(text: str) -> str:
    def fill(match: re.Match) -> str:
        if match[2] == "report":
            return "\n".join([match[1], *figures.report(), "", match[4]])
        short = SOURCES.get(match[2])
        data = result(short or match[2])
        lines = ["*Not measured yet.*"] if data is None else [*TABLES[match[2]](data), "", where(data, not short)]
        return match[1] + "\n" + "\n".join(lines) + "\n\n" + match[4]

    return PLACE.sub(fill, text)


def main() -> int:
    stale = []
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        text = path.read_text("utf-8")
        if (new := filled(text)) != text:
            stale.append(path.relative_to(ROOT))
            if "--check" not in sys.argv:
                path.write_text(new, "utf-8")
    for path in stale:
        print(f"{path}: " + ("differs from bench/results" if "--check" in sys.argv else "rewritten"))
    return int(bool(stale) and "--check" in sys.argv)


if __name__ == "__main__":
    sys.exit(main())
