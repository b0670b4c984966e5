"""The `anytune` command, and `python -m anytune`."""

import sys
from typing import NoReturn


def main() -> NoReturn:
    """Run the command line and exit. Ctrl-C shows no traceback while modules are imported, either."""
    try:
        from anytune.cli.main import main as run
    except KeyboardInterrupt:
        sys.stderr.write("anytune: interrupted\n")
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
