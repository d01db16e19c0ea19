"""`darkroom up` as people use it: real processes, real signals, a real picture."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import redis

from service.settings.groups import StorageSettings

START_S = 120.0
STOP_S = 12.0


def until(condition: Callable[[], bool], deadline_s: float, what: str) -> None:
    deadline = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {deadline_s} s"
        time.sleep(0.05)


def clean_environment() -> dict[str, str]:
    """The tests' environment, less what would lead `up` to other servers; one torch thread, as everywhere."""
    foreign = ("DARKROOM_", "PORT", "AUTH")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return {**kept, "DARKROOM_ENGINE_THREADS": "1"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def processes() -> dict[int, tuple[int, str]]:
    """Process id → (parent's id, command line) of everything that lives; zombies are dead."""
    listing = subprocess.run(["ps", "-axo", "pid=,ppid=,stat=,command="], capture_output=True, text=True, check=True)
    rows = (line.split(None, 3) for line in listing.stdout.splitlines())
    return {int(row[0]): (int(row[1]), row[3]) for row in rows if len(row) == 4 and not row[2].startswith("Z")}


def descendants(pid: int) -> dict[int, str]:
    """Everything that `pid` has started, directly or not."""
    living, found, border = processes(), {}, {pid}
    while border:
        children = {child for child, (parent, _) in living.items() if parent in border}
        found |= {child: living[child][1] for child in children}
        border = children
    return found


class Up:
    """One `darkroom up`, its output, and everything that it ever started."""

    def __init__(self, home: Path, *words: str, port: int | None = None, **variables: str) -> None:
        self.home = home
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._output = home.parent / f"{home.name}-{self.port}.out"
        self._seen: dict[int, str] = {}
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "service.cli.main", "up", "--home", str(home), "--port", str(self.port), *words],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**clean_environment(), **variables},
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        return self._output.read_text()

    def says(self, text: str) -> bool:
        """Whether `text` is in the output; notes what runs meanwhile."""
        self.note()
        assert self.process.poll() is None or text in self.output, self.output
        return text in self.output

    def note(self) -> None:
        self._seen |= descendants(self.process.pid)

    def wait_for(self, text: str) -> None:
        until(lambda: self.says(text), START_S, f"{text!r} in the output")

    def left_behind(self) -> dict[int, str]:
        living = processes()
        return {pid: command for pid, command in self._seen.items() if living.get(pid, (0, ""))[1] == command}

    def end(self, *numbers: signal.Signals, group: bool = False) -> int:
        """Send signals, wait for the end of everything; returns the exit code."""
        self.note()
        for number in numbers:
            os.killpg(self.process.pid, number) if group else self.process.send_signal(number)
        code = self.process.wait(STOP_S)
        until(lambda: not self.left_behind(), STOP_S, f"the end of {self.left_behind()}")
        return code

    def discard(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Up]]:
    started: list[Up] = []

    def run(*words: str, home: Path = tmp_path / "home", port: int | None = None, **variables: str) -> Up:
        started.append(Up(home, *words, port=port, **variables))
        return started[-1]

    yield run
    for each in started:
        each.discard()


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """One that serves, for tests that leave it as it is."""
    up = Up(tmp_path_factory.mktemp("serving") / "home")
    up.wait_for("Serving http")
    yield up
    up.end(signal.SIGTERM)


def size_of_png(path: Path) -> tuple[int, int]:
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    return int.from_bytes(data[16:20]), int.from_bytes(data[20:24])


def generations(url: str) -> dict[str, str]:
    """Id → status, newest first."""
    listed = httpx.get(f"{url}/v1/generations", params={"limit": 50}).raise_for_status().json()["data"]
    return {each["id"]: each["status"] for each in listed}


def test_once_draws_a_picture_and_the_next_start_finds_its_job(start: Callable[..., Up]) -> None:
    first = start("--once")
    assert first.process.wait(START_S) == 0, first.output
    shown = re.search(r"^First picture: (.+\.png)$", first.output, re.MULTILINE)
    assert shown, first.output
    picture = Path(shown[1])
    assert first.home in picture.parents
    assert size_of_png(picture) == (64, 64)

    second = start()
    second.wait_for("Serving http")
    assert "1 earlier generation found" in second.output
    listed = generations(second.url)
    assert len(listed) == 2
    assert listed[picture.stem] == "succeeded"
    stored = httpx.get(f"{second.url}/v1/generations/{picture.stem}/images/0", follow_redirects=True)
    assert stored.raise_for_status().content == picture.read_bytes()
    assert second.end(signal.SIGINT, group=True) == 0
    assert "Traceback" not in second.output


def test_port_in_use_is_one_line(start: Callable[..., Up]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        up = start(port=taken.getsockname()[1])
        assert up.process.wait(30) == 1
    assert up.output.count("\n") == 1
    assert f"Port {up.port} is in use; choose another" in up.output


@pytest.mark.parametrize(
    ("variable", "address", "sentence"),
    [
        ("DARKROOM_REDIS_URL", "redis://127.0.0.1:1", "DARKROOM_REDIS_URL"),
        ("DARKROOM_S3_ENDPOINT", "http://127.0.0.1:1", "DARKROOM_S3_ENDPOINT"),
    ],
)
def test_servers_of_ones_own_that_do_not_answer_are_named(
    start: Callable[..., Up], variable: str, address: str, sentence: str
) -> None:
    up = start(**{variable: address})
    assert up.process.wait(START_S) == 1
    assert sentence in up.output.splitlines()[-1]
    assert "Traceback" not in up.output


def test_servers_of_ones_own_are_used(
    start: Callable[..., Up], valkey_url: str, redis_client: redis.Redis, storage_settings: StorageSettings
) -> None:
    access_key, secret_key = storage_settings.access_key, storage_settings.secret_key
    assert access_key is not None
    assert secret_key is not None
    up = start(
        "--once",
        DARKROOM_REDIS_URL=valkey_url,
        DARKROOM_S3_ENDPOINT=storage_settings.endpoint or "",
        DARKROOM_S3_BUCKET=storage_settings.bucket,
        DARKROOM_S3_ACCESS_KEY=access_key.get_secret_value(),
        DARKROOM_S3_SECRET_KEY=secret_key.get_secret_value(),
    )
    assert up.process.wait(START_S) == 0, up.output
    assert redis_client.dbsize() > 0
    assert not (up.home / "valkey").exists()
    assert not (up.home / "s3").exists()


def test_model_that_cannot_be_loaded_is_told_with_the_workers_last_words(
    start: Callable[..., Up], tmp_path: Path
) -> None:
    catalogue = tmp_path / "models.yaml"
    catalogue.write_text("models:\n  - {id: mine, source: ./nowhere, default: true}\n")
    up = start(DARKROOM_MODELS=str(catalogue))
    assert up.process.wait(START_S) == 1
    assert "The worker ended with exit code 1 while starting" in up.output
    assert "./nowhere" in up.output


def test_long_loading_is_told_with_where_to_look(start: Callable[..., Up]) -> None:
    """An engine that ends at once is started again for ever."""
    up = start(DARKROOM_ENGINE_MODULE="this")
    up.wait_for("The worker is still loading; its log is ")
    assert up.output.count("still loading") == 1
    assert up.end(signal.SIGINT) == 130


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", ["Valkey", "SeaweedFS", "Gateway"])
def test_stop_during_the_start_leaves_nothing(start: Callable[..., Up], moment: str, number: signal.Signals) -> None:
    up = start()
    up.wait_for(moment)
    assert up.end(number) == 128 + number
    assert "Stopped before the first picture" in up.output
    assert "Traceback" not in up.output


def test_impatient_ctrl_c_leaves_nothing(start: Callable[..., Up]) -> None:
    up = start()
    up.wait_for("Serving http")
    assert up.end(signal.SIGINT, signal.SIGINT, signal.SIGINT, group=True) == 0


def test_killed_up_leaves_no_orphan_and_its_home_starts_again(start: Callable[..., Up]) -> None:
    up = start()
    up.wait_for("Serving http")
    assert up.end(signal.SIGKILL) == -signal.SIGKILL

    again = start("--once")
    assert again.process.wait(START_S) == 0, again.output
    assert "1 earlier generation found" in again.output


def test_second_up_on_a_home_is_one_line(serving: Up, start: Callable[..., Up]) -> None:
    second = start(home=serving.home)
    assert second.process.wait(30) == 1
    assert second.output.count("\n") == 1
    assert f"already (process {serving.process.pid})" in second.output
    assert httpx.get(f"{serving.url}/readyz").is_success


@pytest.mark.parametrize("module", ["service.app", "worker.agent", "service.webhooks"])
def test_killed_process_is_started_again_and_draws(serving: Up, module: str) -> None:
    pid = next(pid for pid, command in descendants(serving.process.pid).items() if command.endswith(f"-m {module}"))
    os.kill(pid, signal.SIGKILL)
    name = {"service.app": "gateway", "worker.agent": "worker", "service.webhooks": "sender"}[module]
    serving.wait_for(f"The {name} runs again.")

    def draws() -> bool:
        try:
            body = {"prompt": "a red circle"}
            reply = httpx.post(f"{serving.url}/v1/generations", json=body, headers={"Prefer": "wait=30"}, timeout=40)
        except httpx.TransportError:
            return False
        return reply.is_success and reply.json()["status"] == "succeeded"

    until(draws, START_S, "a picture after the restart")


def started_generate(serving: Up, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "service.cli.main", "generate", *words, "--url", serving.url],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=clean_environment(),
    )


def generate(serving: Up, *words: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a `generate` that ran to its end."""
    process = started_generate(serving, *words)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def test_generate_saves_what_was_asked_for(serving: Up, tmp_path: Path) -> None:
    words = ["a blue square", "--seed", "7", "--steps", "4", "--num-images", "2", "-o", str(tmp_path / "square.png")]
    code, out, err = generate(serving, *words)
    assert code == 0, err
    assert out.split() == [str(tmp_path / "square-0.png"), str(tmp_path / "square-1.png")]
    assert size_of_png(tmp_path / "square-1.png") == (64, 64)


def test_generate_starts_from_a_picture(serving: Up, tmp_path: Path) -> None:
    first, second = tmp_path / "first.png", tmp_path / "second.webp"
    assert generate(serving, "a red apple", "--steps", "4", "-o", str(first))[0] == 0
    code, out, err = generate(serving, "a green apple", "--image", str(first), "--steps", "4", "-o", str(second))
    assert code == 0, err
    assert out.strip() == str(second)
    assert second.read_bytes()[8:12] == b"WEBP"


def test_refusal_is_told_by_field(serving: Up, tmp_path: Path) -> None:
    code, out, err = generate(serving, "x", "--width", "65", "--model", "tiny-emojy", "-o", str(tmp_path / "x.png"))
    assert (code, out) == (1, "")
    assert "tiny-emoji" in err
    assert "Traceback" not in err


def test_ctrl_c_cancels_on_the_server(serving: Up, tmp_path: Path) -> None:
    before = generations(serving.url)
    words = ["a slow picture", "--steps", "150", "--num-images", "4", "-o", str(tmp_path / "slow.png")]
    process = started_generate(serving, *words)
    until(lambda: "running" in generations(serving.url).values(), 30, "a running generation")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, "Canceled.\n")
    (created,) = generations(serving.url).keys() - before.keys()
    until(lambda: generations(serving.url)[created] == "canceled", 30, "the cancellation")
    assert not (tmp_path / "slow.png").exists()


def test_models_are_listed(serving: Up) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "service.cli.main", "models", "list", "--url", serving.url],
        capture_output=True,
        text=True,
        env=clean_environment(),
        check=True,
    )
    assert "tiny-emoji" in done.stdout
