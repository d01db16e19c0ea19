"""Making `.venv` of a checkout: one pip command, a stamp that makes the next call instant, and one line per failure.

Standard library only: this runs before anything is installed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import importlib.util
import json
import os
import platform
import queue
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from service.cli.live_line import LiveLine

#: Where PyTorch publishes its CPU builds; PyPI's build for Linux is the CUDA one.
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"

#: Bytes of disk that an installation needs at least, by its largest part.
_DISK_BYTES = {"cuda": 9_000_000_000, "cpu": 2_000_000_000, "none": 500_000_000}

_DISK_FULL = "The disk is full: make room and run the same command again."
_NO_NETWORK = re.compile(r"NewConnectionError|NameResolutionError|ConnectTimeout|ReadTimeout|ProxyError|SSLError")


class InstallationError(Exception):
    """The environment could not be made; the message is one line for people."""


@dataclass(frozen=True, slots=True)
class TorchBuild:
    """Which torch is installed, and from where."""

    #: Requirement for pip; None = no torch is asked for.
    requirement: str | None
    #: An index to look at besides pip's own sources.
    extra_index: str | None = None
    #: What people are told.
    description: str = ""
    disk: str = "cpu"


def run(root: str, extras: Sequence[str]) -> int:
    """Make `.venv` under `root` hold the project with these extras; returns the exit code."""
    signal.signal(signal.SIGTERM, _interrupt)
    environment = Environment(Path(root), frozenset(extras))
    try:
        environment.ensure()
    except InstallationError as err:
        sys.stderr.write(f"{err}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted. The next start begins the environment anew; downloads are kept by pip.\n")
        return 130
    except OSError as err:
        full = err.errno in {errno.ENOSPC, errno.EDQUOT}
        reason = _DISK_FULL if full else f"Installing failed: {err.strerror or err} ({err.filename or root})."
        sys.stderr.write(f"{reason}\n")
        return 1
    return 0


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


class Environment:
    """The `.venv` of one checkout."""

    def __init__(self, root: Path, extras: frozenset[str]) -> None:
        self._root = root
        self._extras = extras
        self._venv = root / ".venv"
        self._python = self._venv / "bin" / "python"
        self._stamp = self._venv / "darkroom.json"
        #: Lies there while pip works: an environment that has it is in an unknown state.
        self._unfinished = self._venv / "darkroom-unfinished"
        self._log = self._venv / "install.log"

    def ensure(self) -> None:
        """Install unless the stamp says that it is done. Raises InstallationError."""
        if self._is_current():
            return
        with LiveLine(sys.stdout) as line, self._locked(line) as lock_fd:
            if self._is_current():  # the one we waited for did it
                return
            self._make_venv(line)
            self._unfinished.touch()
            self._install(line, lock_fd)
            self._write_stamp()
            self._unfinished.unlink()

    def _inputs(self) -> str:
        digest = hashlib.sha256(str(self._root).encode())
        for name in ("pyproject.toml", "constraints.txt"):
            digest.update((self._root / name).read_bytes())
        return digest.hexdigest()

    def _installed_extras(self) -> frozenset[str]:
        """The extras of an installation from exactly these files; empty if there is none."""
        try:
            stamp = json.loads(self._stamp.read_text())
            same = stamp["inputs"] == self._inputs() and self._python.exists()
            return frozenset(stamp["extras"]) if same else frozenset()
        except (OSError, ValueError, KeyError, TypeError):
            return frozenset()

    def _is_current(self) -> bool:
        return not self._unfinished.exists() and self._extras <= self._installed_extras()

    def _write_stamp(self) -> None:
        stamp = {"inputs": self._inputs(), "extras": sorted(self._extras | self._installed_extras())}
        partial = self._stamp.with_suffix(".partial")
        partial.write_text(json.dumps(stamp))
        partial.replace(self._stamp)

    @contextlib.contextmanager
    def _locked(self, line: LiveLine) -> Iterator[int]:
        """Hold the checkout's lock. pip inherits it, so that it is held while a pip of a killed parent still writes."""
        fd = os.open(self._root, os.O_RDONLY)
        try:
            while True:
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    line.show("another make is installing here; waiting for it")
                    threading.Event().wait(0.2)
            yield fd
        finally:
            os.close(fd)

    def _make_venv(self, line: LiveLine) -> None:
        usable = self._python.exists() and _succeeds(
            self._python, "-c", "import pip, sys; sys.exit(sys.version_info < (3, 11))"
        )
        if usable and not self._unfinished.exists():
            return
        for module in ("venv", "ensurepip"):
            if importlib.util.find_spec(module) is None:
                package = f"python{sys.version_info[0]}.{sys.version_info[1]}-venv"
                msg = f"{sys.executable} has no {module} module; on Debian and Ubuntu, install {package}."
                raise InstallationError(msg)
        line.say(f"Creating .venv (Python {platform.python_version()})")
        command = [sys.executable, "-m", "venv", "--clear", str(self._venv)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own arguments
        if done.returncode:
            raise InstallationError(explain(done.stdout + done.stderr, "python -m venv"))

    def _install(self, line: LiveLine, lock_fd: int) -> None:
        extras = sorted(self._extras | self._installed_extras())
        line.show("looking for a torch build")
        torch = self._choose_torch() if "worker" in extras else TorchBuild(None, disk="none")
        self._require_disk(torch.disk)
        if torch.description:
            line.say(torch.description)
        line.say(f"Installing darkroom[{','.join(extras)}] into .venv")
        arguments = ["install", "--progress-bar", "off", "--constraint", "constraints.txt"]
        arguments += ["--extra-index-url", torch.extra_index] if torch.extra_index else []
        arguments += [torch.requirement] if torch.requirement else []
        arguments += ["--editable", f".[{','.join(extras)}]"]
        before = self._count_packages()
        code, output = self._pip_live(arguments, line, lock_fd)
        if code:
            raise InstallationError(f"{explain(output, 'pip')} Its full output: {self._log}")
        line.say(f"Installed {self._count_packages() - before} packages in {line.elapsed_s:.0f} s")

    def _choose_torch(self) -> TorchBuild:
        pinned = re.search(r"^torch==(\S+)$", (self._root / "constraints.txt").read_text(), re.MULTILINE)
        if pinned is None:
            msg = "constraints.txt does not pin torch."
            raise InstallationError(msg)
        return choose_torch(
            pinned[1],
            system=platform.system(),
            nvidia=has_nvidia_driver(),
            reachable=self._pip_finds,
        )

    def _pip_finds(self, requirement: str, index: str | None) -> bool:
        """Whether pip can get this at `index`, or at its own sources. Raises InstallationError without a network."""
        arguments = ["install", "--dry-run", "--no-deps", "--no-input", "--retries", "1", "--timeout", "15"]
        arguments += ["--index-url", index] if index else []
        command = [self._python, "-m", "pip", *arguments, requirement]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own arguments
        output = done.stdout + done.stderr
        if done.returncode and index is None and _NO_NETWORK.search(output):
            raise InstallationError(explain(output, "pip"))
        return done.returncode == 0

    def _require_disk(self, part: str) -> None:
        free = shutil.disk_usage(self._venv).free
        needed = _DISK_BYTES[part]
        if free < needed and not self._installed_extras():
            msg = f"Installing needs about {needed / 1e9:.1f} GB of disk; {free / 1e9:.1f} GB are free at {self._venv}."
            raise InstallationError(msg)

    def _count_packages(self) -> int:
        return sum(1 for _ in self._venv.glob("lib/python*/site-packages/*.dist-info"))

    def _pip_live(self, arguments: Sequence[str], line: LiveLine, lock_fd: int) -> tuple[int, str]:
        """Run pip, show what it does, keep its output in the log; returns (exit code, output)."""
        pip = subprocess.Popen(  # noqa: S603 - our own arguments
            [self._python, "-m", "pip", *arguments, "--no-input", "--disable-pip-version-check", "--retries", "3"],
            cwd=self._root,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            pass_fds=(lock_fd,),
        )
        lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        threading.Thread(target=_forward, args=(pip.stdout, lines), daemon=True).start()
        output: list[str] = []
        stage = Stage(self._count_packages())
        try:
            with self._log.open("w") as log:
                while True:
                    line.show(stage.describe(self._count_packages))
                    try:
                        text = lines.get(timeout=0.1)
                    except queue.Empty:
                        continue
                    if text is None:
                        break
                    output.append(text)
                    log.write(text)
                    stage.read(text)
            return pip.wait(), "".join(output)
        finally:
            if pip.poll() is None:
                pip.terminate()
                pip.wait()


class Stage:
    """What pip is doing, told from its output."""

    def __init__(self, packages_before: int) -> None:
        self._before = packages_before
        self._to_install = 0
        self._text = "starting pip"

    def read(self, line: str) -> None:
        """Take in one line of pip's output."""
        if found := re.match(r"\s*Collecting ([A-Za-z0-9_.-]+)", line):
            self._text = f"collecting {found[1]}"
        elif found := re.match(r"\s*Downloading (\S+?)(?:-\d\S*)?\s+(\([^)]*\))", line):
            self._text = f"downloading {found[1].rsplit('/', 1)[-1]} {found[2]}"
        elif "Retrying" in line:
            self._text = "waiting for the package index, which does not answer"
        elif line.startswith("Installing collected packages:"):
            self._to_install = line.count(",") + 1

    def describe(self, count_packages: Callable[[], int]) -> str:
        """One phrase for people; counts installed packages where pip itself is silent."""
        if not self._to_install:
            return self._text
        done = min(max(count_packages() - self._before, 0), self._to_install)
        return f"installing: {done} of {self._to_install} packages"


def choose_torch(pinned: str, *, system: str, nvidia: bool, reachable: Callable[[str, str | None], bool]) -> TorchBuild:
    """Decide between CPU and CUDA. `reachable(requirement, index)` asks pip; index None = its own sources."""
    if system != "Linux":
        return TorchBuild(f"torch=={pinned}")
    if nvidia:
        return TorchBuild(
            f"torch=={pinned}",
            description=f"NVIDIA driver found: taking torch {pinned} with CUDA from pip's own sources, about 3 GB",
            disk="cuda",
        )
    cpu = f"torch=={pinned}+cpu"
    if reachable(cpu, None):
        return TorchBuild(cpu, description=f"No NVIDIA driver: taking the CPU build, torch {pinned}+cpu")
    if reachable(cpu, TORCH_CPU_INDEX):
        return TorchBuild(
            cpu,
            TORCH_CPU_INDEX,
            f"No NVIDIA driver: taking the CPU build, torch {pinned}+cpu, about 0.2 GB from {TORCH_CPU_INDEX}",
        )
    return TorchBuild(
        f"torch=={pinned}",
        description=(
            f"No NVIDIA driver, but no CPU build of torch {pinned} can be reached, neither in pip's own sources nor at "
            f"{TORCH_CPU_INDEX}: taking the CUDA build from pip's own sources, about 3 GB"
        ),
        disk="cuda",
    )


def has_nvidia_driver() -> bool:
    """Whether this machine has an NVIDIA driver; needs no library."""
    paths = (Path("/proc/driver/nvidia"), Path("/dev/nvidia0"))
    return any(path.exists() for path in paths) or shutil.which("nvidia-smi") is not None


def explain(output: str, program: str) -> str:
    """Turn a failed program's output into one sentence that says what to do."""
    if re.search(r"No space left on device|Errno 28|Disk quota exceeded", output):
        return _DISK_FULL
    if _NO_NETWORK.search(output):
        return "pip cannot reach its package index: check the network, or pip's own configuration (`pip config list`)."
    if found := re.search(r"No matching distribution found for (\S+)", output):
        version = f"Python {sys.version_info[0]}.{sys.version_info[1]}"
        return f"There is no {found[1]} for {version} on {platform.system()} {platform.machine()}."
    errors = [line for line in output.splitlines() if line.lower().startswith("error")]
    last = (errors or output.strip().splitlines() or ["no output"])[-1].strip().rstrip(".")
    return f"{program} failed: {last}."


def _succeeds(*command: str | Path) -> bool:
    return not subprocess.run(command, capture_output=True, check=False).returncode  # noqa: S603 - our own arguments


def _forward(stream: Iterator[str] | None, lines: queue.SimpleQueue[str | None]) -> None:
    for text in stream or ():
        lines.put(text)
    lines.put(None)
