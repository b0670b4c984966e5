"""The `anytune` command, and `python -m anytune`."""

import sys
from typing import NoReturn


def main() -> NoReturn:
    """Run the command line and exit. Ctrl-C during the imports is no traceback either."""
    try:
        from anytune.cli.main import main as run
    except KeyboardInterrupt:
        sys.stderr.write("anytune: interrupted\n")
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
