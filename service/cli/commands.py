"""The commands of `darkroom`. Each imports what it needs when it runs: `--help` must not wait for a library."""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.auditing import audit
from service.cli.tenancy import keys, tenants
from service.cli.webhooks import webhooks

if TYPE_CHECKING:
    from service.cli.gateway_client import GatewayClient

app = typer.Typer(
    name="darkroom",
    help="Develops latents into pictures: a self-hosted image-generation service.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
models = typer.Typer(no_args_is_help=True, help="What can be drawn with.")
app.add_typer(tenants, name="tenants")
app.add_typer(keys, name="keys")
app.add_typer(models, name="models")
app.add_typer(webhooks, name="webhooks")
app.command()(audit)

Url = Annotated[str | None, typer.Option(help="Address of the gateway [DARKROOM_URL].", show_default=False)]
Key = Annotated[str | None, typer.Option(help="API key, dk_… [DARKROOM_KEY].", show_default=False)]


@app.callback(invoke_without_command=True)
def _root(show_version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if show_version:
        typer.echo(f"darkroom {version('darkroom')}")
        raise typer.Exit


@app.command()
def up(
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Port on 127.0.0.1 [PORT; 8000].")] = None,
    home: Annotated[Path | None, typer.Option(help="Folder of all data [DARKROOM_HOME; .darkroom].")] = None,
    once: Annotated[bool, typer.Option("--once", help="Exit after the first picture.")] = False,
    prompt: Annotated[str | None, typer.Option(help="What the first picture shows.")] = None,
) -> None:
    """Start Redis, storage, a gateway and a worker on this machine, draw a picture, serve until Ctrl-C."""
    from service.cli.configuration import read_configuration  # noqa: PLC0415
    from service.cli.terminal import Terminal  # noqa: PLC0415 - see the module's first line
    from service.cli.up import DEFAULT_PROMPT, UpOptions  # noqa: PLC0415
    from service.cli.up import up as start  # noqa: PLC0415
    from service.settings.cli import UpSettings  # noqa: PLC0415

    settings = read_configuration(UpSettings)
    options = UpOptions(home or settings.home, port or settings.port, once, prompt or DEFAULT_PROMPT)
    start(options, settings, Terminal())


@app.command()
def gateway() -> None:
    """Run the HTTP gateway in the foreground; its settings come from the environment."""
    _become("service.app")


@app.command()
def worker() -> None:
    """Run a worker in the foreground; its settings come from the environment."""
    _become("worker.agent")


@app.command()
def sender() -> None:
    """Run a sender of webhooks in the foreground; its settings come from the environment."""
    _become("service.webhooks")


@app.command()
def generate(  # noqa: PLR0913, PLR0917 - one parameter per option
    prompt: Annotated[str, typer.Argument(help="What the picture shows.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write: .png, .jpg or .webp.")] = Path(
        "out.png"
    ),
    url: Url = None,
    key: Key = None,
    model: Annotated[str | None, typer.Option(help="An id of `darkroom models list`.")] = None,
    negative: Annotated[str | None, typer.Option(help="What the picture shall not show.")] = None,
    width: Annotated[int | None, typer.Option(help="px.")] = None,
    height: Annotated[int | None, typer.Option(help="px.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale.")] = None,
    scheduler: Annotated[str | None, typer.Option(help="A name of GET /v1/schedulers.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same picture.")] = None,
    num_images: Annotated[int | None, typer.Option(help="Pictures; image i has the seed `seed + i`.")] = None,
    image: Annotated[Path | None, typer.Option(help="Start from this picture.")] = None,
    mask: Annotated[Path | None, typer.Option(help="Repaint what is white here.")] = None,
    strength: Annotated[float | None, typer.Option(help="How far from --image, (0, 1].")] = None,
) -> None:
    """Draw a picture through a gateway and save it.

    Exit codes: 0 drawn, 1 refused or failed, 2 wrong options, 3 no gateway, 130 canceled by Ctrl-C.
    """
    from service.cli.generate import Wish, generate, request_body  # noqa: PLC0415
    from service.cli.terminal import Terminal  # noqa: PLC0415

    wish = Wish(
        prompt=prompt,
        model=model,
        negative_prompt=negative,
        width=width,
        height=height,
        steps=steps,
        guidance_scale=guidance,
        scheduler=scheduler,
        seed=seed,
        num_images=num_images,
        strength=strength,
    )
    body = request_body(wish, output, image, mask)
    with _client(url, key) as client:
        for path in generate(client, body, output, Terminal()):
            typer.echo(path)


@models.command("list")
def list_models(url: Url = None, key: Key = None) -> None:
    """List the models that the gateway takes requests for."""
    from service.cli.tables import models_table, show  # noqa: PLC0415

    with _client(url, key) as client:
        show(models_table(client.models()))


@app.command()
def doctor() -> None:
    """Check this machine and what it is configured for; exit 1 when something must be mended."""
    from service.cli.doctor import examine  # noqa: PLC0415
    from service.cli.tables import findings_table, show  # noqa: PLC0415

    findings = examine()
    show(findings_table(findings))
    if any(each.verdict == "fail" for each in findings):
        raise typer.Exit(1)


def _client(url: str | None, key: str | None) -> GatewayClient:
    from service.cli.configuration import read_configuration  # noqa: PLC0415
    from service.cli.gateway_client import GatewayClient  # noqa: PLC0415
    from service.settings.cli import ClientSettings  # noqa: PLC0415

    settings = read_configuration(ClientSettings)
    kept = settings.key.get_secret_value() if settings.key else None
    return GatewayClient(url or settings.url, key or kept)


def _become(module: str) -> None:
    """Replace this process by one of Darkroom's, so that a service manager's signals reach it."""
    import os  # noqa: PLC0415

    os.execv(sys.executable, [sys.executable, "-P", "-m", module])  # noqa: S606 - our own module
