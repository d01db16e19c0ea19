"""The `darkroom` command: a failure is one line and an exit code, never a traceback."""

from __future__ import annotations

import errno
import sys

from service.cli.failure import CommandFailed


def main() -> None:
    """Run the command line."""
    try:
        from service.cli.commands import app  # noqa: PLC0415 - what it needs is an extra, which may be missing

        app()
    except CommandFailed as err:
        _end(err.message, err.exit_code)
    except KeyboardInterrupt:
        _end("Stopped.", 130)
    except ModuleNotFoundError as err:
        if (err.name or "").startswith(("service", "worker")):
            raise
        _end(f"{err.name} is not installed; this command needs more: pip install 'darkroom[cli]' or another extra.", 1)
    except OSError as err:
        if err.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        _end(f"The disk is full: {err.filename or 'make room and try again'}.", 1)


def _end(message: str, exit_code: int) -> None:
    sys.stderr.write(f"{message}\n")
    sys.exit(exit_code)


if __name__ == "__main__":
    main()
