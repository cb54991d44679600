"""The console entry point: guards the imports too, which take a second or two."""

from __future__ import annotations

import sys
from typing import NoReturn


def main() -> NoReturn:
    """Run `fcnseg`; Ctrl-C at any moment ends it with 130 and one line."""
    try:
        from pipeline.cli.app import main as run_command

        run_command()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
