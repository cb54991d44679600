"""Entry point of `fcnseg` and `python -m pipeline`."""

from __future__ import annotations

import sys
from typing import NoReturn


def main() -> NoReturn:
    """Run `fcnseg`. Ctrl-C ends it with exit code 130 and one line, during imports too."""
    try:
        from pipeline.cli.app import main as run_command

        run_command()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
