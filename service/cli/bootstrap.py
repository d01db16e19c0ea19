"""Prepare `.venv` for a checkout: `python3 service/cli/bootstrap.py EXTRA ...`. Run by the Makefile.

This file keeps to syntax that every Python reads, so that an old one gets a sentence instead of a SyntaxError.
"""

import os
import sys

NEEDED = "Darkroom needs Python 3.11 or newer with the venv module, on Linux or on macOS with Apple silicon"


def unsuitable():
    """Return why this machine cannot run Darkroom, or None."""
    here = sys.executable or "python3"
    if sys.version_info < (3, 11):  # noqa: UP036 -- this file is read by whatever `python3` is
        return here + " is Python " + ".".join(map(str, sys.version_info[:2]))
    system = os.uname()[0] if hasattr(os, "uname") else sys.platform
    machine = os.uname()[4] if hasattr(os, "uname") else ""
    if system == "Linux" or (system == "Darwin" and machine == "arm64"):
        return None
    return "this is " + system + " " + machine


def main():
    """Install what the extras named on the command line need, unless that is done already; exit 1 with one line."""
    reason = unsuitable()
    if reason:
        sys.stderr.write(NEEDED + "; " + reason + ".\n")
        sys.exit(1)
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # noqa: PTH100, PTH120
    sys.path[0] = root
    from service.cli.installation import run  # noqa: PLC0415 -- its syntax is new

    sys.exit(run(root, sys.argv[1:]))


if __name__ == "__main__":
    main()
