"""`darkroom up`: the whole service on one machine, proven by a picture, until Ctrl-C."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from service.cli.embedded import EmbeddedS3, EmbeddedValkey
from service.cli.failure import CommandFailed
from service.cli.follower import Follower
from service.cli.gateway_client import GatewayClient, GatewayRefused
from service.cli.home import Home
from service.cli.ports import LOOPBACK, is_free
from service.cli.stopping import Stopped, StopRequest
from service.cli.supervisor import ProcessPart, Supervisor
from service.cli.terminal import Terminal
from service.settings.cli import UpSettings, child_environment

DEFAULT_PROMPT = "a red apple, 3d render"

_LISTEN_TIMEOUT_S = 60.0
#: s that Redis and storage get to answer once a model is warm; a server of one's own may be starting too.
_READY_TIMEOUT_S = 20.0
#: s of loading after which people are told where to look: the worker may fetch gigabytes, or fail over and over.
_HINT_S = 15.0
_TICK_S = 0.1
#: s between SIGTERM and SIGKILL; a job that does not end within them is drawn at the next start.
#: What a sender does not end sending within them is sent at the next start.
_GATEWAY_GRACE_S, _WORKER_GRACE_S, _SENDER_GRACE_S = 3, 5, 3

#: Here the engine shares its cores with everything else. Threads that spin while they wait for one another then slow
#: it down twentyfold and more: 25 steps of 64 px on 2 cores, one of them busy, took 19.7 s spinning and 0.8 s sleeping.
_SHARED_MACHINE = {"OMP_WAIT_POLICY": "PASSIVE"}

#: Modules by which an installed extra is told, and the extra.
_NEEDED = {"uvicorn": "gateway", "fastapi": "gateway", "torch": "worker", "diffusers": "worker", "PIL": "worker"}


@dataclass(frozen=True, slots=True)
class UpOptions:
    """What the command line asks of `up`."""

    home: Path
    port: int
    #: Exit after the first picture.
    once: bool
    prompt: str


def up(options: UpOptions, settings: UpSettings, terminal: Terminal) -> None:
    """Serve until asked to stop, or until the first picture. Nothing is left running. Raises CommandFailed."""
    _require_extras()
    home = Home(options.home)
    with StopRequest.listening() as stop, home.held():
        _require_port(options.port)
        service = LocalService(home, options, settings, terminal, stop)
        picture: Path | None = None
        try:
            service.start()
            picture = service.draw_first_picture()
            terminal.result(f"First picture: {picture}")
            if not options.once:
                service.serve()
        except Stopped as err:
            terminal.say("Stopping …")
            if picture is None:
                msg = "Stopped before the first picture."
                raise CommandFailed(msg, exit_code=128 + err.signal_number) from err
        finally:
            service.stop()


class LocalService:
    """Redis, storage, a gateway, a worker and a sender of webhooks on this machine."""

    def __init__(
        self, home: Home, options: UpOptions, settings: UpSettings, terminal: Terminal, stop: StopRequest
    ) -> None:
        self._home = home
        self._options = options
        self._settings = settings
        self._terminal = terminal
        self._stop = stop
        self._supervisor = Supervisor(terminal)
        self._valkey = None if settings.redis_url else EmbeddedValkey(home.valkey)
        self._s3 = None if settings.s3_endpoint else EmbeddedS3(home.s3)
        self._url = f"http://{LOOPBACK}:{options.port}"
        self._client = GatewayClient(self._url, timeout_s=10.0)

    def start(self) -> None:
        """Return when a request would be drawn. Raises CommandFailed or Stopped."""
        for server in (self._valkey, self._s3):
            if server is not None:
                with self._terminal.part(server.name, "starting"):
                    self._supervisor.start(server)
                self._stop.check()
        environment = child_environment(self._variables(), defaults=_SHARED_MACHINE)
        gateway = self._process("gateway", "service.app", environment | self._metrics(0), _GATEWAY_GRACE_S)
        worker = self._process("worker", "worker.agent", environment | self._metrics(1), _WORKER_GRACE_S)
        sender = self._process("sender", "service.webhooks", environment | self._metrics(2), _SENDER_GRACE_S)
        for process in (gateway, worker, sender):
            self._supervisor.start(process)
        with self._terminal.part("Gateway", "starting"):
            self._wait_for_gateway()
        with self._terminal.part("Worker", "loading the model") as doing:
            self._wait_for_model(doing)

    def draw_first_picture(self) -> Path:
        """Draw a picture over HTTP; returns its file."""
        earlier = self._client.earlier_generations(limit=100)
        if earlier:
            count = "100 or more" if len(earlier) == 100 else str(len(earlier))
            self._terminal.say(f"  {count} earlier generation{'s' if len(earlier) > 1 else ''} found")
        follower = Follower(self._client, self._stop, between_polls=self._supervisor.mend)
        with self._terminal.steps("  Picture") as advance:
            # Ahead of jobs that wait since the last start.
            resource = follower.finish({"prompt": self._options.prompt, "priority": "high"}, advance)
        return follower.save(resource, self._home.pictures / f"{resource['id']}.png")[0]

    def serve(self) -> None:
        """Keep everything running. Returns by Stopped; raises CommandFailed when a part cannot be mended."""
        self._terminal.say(f"Serving {self._url} (logs in {self._home.logs}; Ctrl-C stops)")
        addresses = self._variables()
        while True:
            self._stop.wait(_TICK_S)
            self._supervisor.mend()
            if self._supervisor.all_run and self._variables() != addresses:
                msg = "An embedded server had to move to another port, which a running gateway cannot follow."
                raise CommandFailed(msg)

    def stop(self) -> None:
        """Stop what was started."""
        self._client.close()
        self._supervisor.stop()

    def _process(self, name: str, module: str, environment: dict[str, str], grace_s: int) -> ProcessPart:
        return ProcessPart(name, module, log_path=self._home.log_path(name), env=environment, grace_s=grace_s)

    def _metrics(self, place: int) -> dict[str, str]:
        """Return where a process shows its metrics: each needs a port of its own, one after the other."""
        port = self._settings.metrics_port
        return {"DARKROOM_METRICS_PORT": str(port + place)} if port else {}

    def _variables(self) -> dict[str, str]:
        """Return what gateway, worker and sender must know: the variables of `service.settings`."""
        variables = {
            "DARKROOM_HOST": LOOPBACK,
            "DARKROOM_PORT": str(self._options.port),
            "DARKROOM_AUTH": "none",
            "DARKROOM_SHUTDOWN_GRACE_S": str(_GATEWAY_GRACE_S - 1),
            "DARKROOM_DRAIN_S": str(_WORKER_GRACE_S - 2),
        }
        if self._valkey is not None:
            variables["DARKROOM_REDIS_URL"] = self._valkey.url
        if self._s3 is not None:
            storage = self._s3.settings
            variables |= {
                "DARKROOM_S3_ENDPOINT": storage.endpoint or "",
                "DARKROOM_S3_BUCKET": storage.bucket,
                "DARKROOM_S3_REGION": storage.region,
                "DARKROOM_S3_ACCESS_KEY": storage.access_key.get_secret_value() if storage.access_key else "",
                "DARKROOM_S3_SECRET_KEY": storage.secret_key.get_secret_value() if storage.secret_key else "",
            }
        return variables

    def _wait_for_gateway(self) -> None:
        deadline = time.monotonic() + _LISTEN_TIMEOUT_S
        while not self._client.listens():
            if time.monotonic() > deadline:
                msg = f"The gateway does not listen after {_LISTEN_TIMEOUT_S:.0f} s; its logs are in {self._home.logs}."
                raise CommandFailed(msg)
            self._tick()

    def _wait_for_model(self, doing: Callable[[str], None]) -> None:
        """Wait as long as the worker lives: reading a large model, or fetching it from the hub, takes its time."""
        hint_at = time.monotonic() + _HINT_S
        try:
            while not self._client.warm_models():
                if time.monotonic() > hint_at:
                    hint_at = float("inf")
                    self._terminal.say(f"  The worker is still loading; its log is {self._home.logs / 'worker.log'}")
                self._tick()
        except GatewayRefused as err:
            raise self._unready(err.message) from err
        deadline = time.monotonic() + _READY_TIMEOUT_S
        while (missing := self._client.readiness()) is not None:
            if time.monotonic() > deadline:
                raise self._unready(missing)
            doing(missing)
            self._tick()

    def _unready(self, reason: str) -> CommandFailed:
        if self._valkey is not None and self._s3 is not None:
            return CommandFailed(reason)
        return CommandFailed(f"{reason} DARKROOM_REDIS_URL and DARKROOM_S3_ENDPOINT say which servers are used.")

    def _tick(self) -> None:
        self._stop.wait(_TICK_S)
        self._supervisor.check()


def _require_extras() -> None:
    missing = {extra for module, extra in _NEEDED.items() if importlib.util.find_spec(module) is None}
    if missing:
        extras = ",".join(sorted(missing))
        msg = f"`darkroom up` needs more than is installed: pip install 'darkroom[{extras}]'."
        raise CommandFailed(msg)


def _require_port(port: int) -> None:
    if not is_free(port):
        msg = f"Port {port} is in use; choose another: `make run PORT={port + 1}` or `darkroom up --port {port + 1}`."
        raise CommandFailed(msg)
