"""Run by `make check-gateway` where only the gateway's extra is installed: everything of it imports, and no more."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import sys

import service

#: What a gateway's image must not need.
HEAVY = {"torch", "diffusers", "transformers", "PIL", "numpy", "yaml", "typer"}


def main() -> None:
    names = [module.name for module in pkgutil.walk_packages(service.__path__, "service.")]
    # The command line and the SDK of OpenTelemetry have extras of their own.
    served = [name for name in names if not name.startswith(("service.cli", "service.telemetry.otel"))]
    for name in served:
        importlib.import_module(name)
    brought = sorted(HEAVY & set(sys.modules))
    if brought:
        sys.exit(f"the gateway imports {', '.join(brought)}")
    if importlib.util.find_spec("torch") is not None:
        sys.exit("torch is installed here: this environment proves nothing")
    print(f"{len(served)} modules imported with the gateway's extra alone")  # noqa: T201 - the target's answer


if __name__ == "__main__":
    main()
