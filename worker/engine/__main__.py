"""The engine child: `python -m worker.engine --fd-in N --fd-out M`.

Talks over two inherited pipes (`service.contract.engine`), holds no credentials, opens no port and no file but models.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import sys
from typing import TYPE_CHECKING, NoReturn

from service.telemetry.logs import configure_logging
from worker.engine.channel import Inbox, Outbox

if TYPE_CHECKING:
    from worker.engine.loop import Engine

#: From linux/prctl.h. It follows the thread that started us, the agent's supervisor, which lives as long as the agent.
_PR_SET_PDEATHSIG = 1


def main() -> NoReturn:
    """Run until the agent closes its end of the pipe."""
    arguments = _arguments()
    _die_with_parent()
    # Ctrl-C reaches the whole process group; what to do about it is the agent's decision.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Nothing of ours writes to stdout; what a library writes belongs into the log.
    os.dup2(2, 1)
    configure_logging(arguments.log_format, arguments.log_level)
    for descriptor in (arguments.fd_in, arguments.fd_out):
        os.set_inheritable(descriptor, False)
    inbox = Inbox(os.fdopen(arguments.fd_in, "rb"))
    inbox.start()

    outbox = Outbox(os.fdopen(arguments.fd_out, "wb"))
    _engine(inbox, outbox, arguments).run()


def _engine(inbox: Inbox, outbox: Outbox, arguments: argparse.Namespace) -> Engine:
    """Return the engine after some five seconds of imports, with the pipe already watched and SIGINT ignored."""
    import torch  # noqa: PLC0415 - see above

    from worker.pipelines.quiet import quiet_libraries  # noqa: PLC0415 - see above

    quiet_libraries()
    from worker.engine.loop import Engine  # noqa: PLC0415 - see above

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    return Engine(
        inbox,
        outbox,
        capacity=arguments.capacity,
        model_bytes=arguments.model_bytes,
        step_target_s=arguments.step_target_s,
    )


def _die_with_parent() -> None:
    """Have Linux end this process with its agent, also while it is stopped or hangs in a kernel and reads no pipe."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m worker.engine", description="Started by the agent; see its module."
    )
    parser.add_argument("--fd-in", type=int, required=True, help="pipe with the agent's messages")
    parser.add_argument("--fd-out", type=int, required=True, help="pipe for the answers")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads of torch; 0 leaves its own choice")
    parser.add_argument("--capacity", type=int, default=0, help="requests drawn at once; 0 leaves it to the device")
    parser.add_argument(
        "--model-bytes", type=int, default=0, help="bytes that models may fill; 0 leaves it to the device"
    )
    parser.add_argument("--step-target-s", type=float, default=0.0, help="s of a denoiser call of several; 0 = any")
    parser.add_argument("--log-format", choices=("console", "json"), default="console")
    parser.add_argument("--log-level", choices=("debug", "info", "warning", "error"), default="info")
    return parser.parse_args()


if __name__ == "__main__":
    main()
