"""`python -m training STAGE`: one command a stage, in the order of `--help`. What a stage makes, the next one reads.

Every stage shows its progress, may be stopped by Ctrl-C, and goes on when it is started again.
"""

import dataclasses
import importlib
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Train the model in the box, stage by stage.",
    rich_markup_mode=None,
)

Work = Annotated[Path, typer.Option(help="Where stages keep what they make.")]
Steps = Annotated[int | None, typer.Option(min=1, help="Training steps, if not the recipe's.")]
Rate = Annotated[float | None, typer.Option(min=0, help="Peak learning rate, if not the recipe's.")]
Start = Annotated[Path | None, typer.Option(exists=True, file_okay=False, help="Weights to go on from.")]
Base = Annotated[Path | None, typer.Option(exists=True, file_okay=False, help="The pipeline, if not the trained one.")]

_WORK = Path(".training")


@app.command()
def data(work: Work = _WORK) -> None:
    """Fetch the packages and render the drawings. 20 s."""
    from training import drawings  # noqa: PLC0415

    rendered = drawings.render(work)
    typer.echo(f"{len(rendered.labels)} emoji in {work / 'drawings.npz'}")


@app.command()
def autoencoder(work: Work = _WORK, steps: Steps = None, learning_rate: Rate = None, start: Start = None) -> None:
    """Pictures to latents and back. 10 min."""
    _train("autoencoder", work, steps, learning_rate, start=start)


@app.command()
def text_encoder(work: Work = _WORK, steps: Steps = None, learning_rate: Rate = None) -> None:
    """From captions to meaning, before there is a denoiser. 5 min."""
    _train("text_encoder", work, steps, learning_rate)


@app.command()
def denoiser(work: Work = _WORK, steps: Steps = None, learning_rate: Rate = None, start: Start = None) -> None:
    """Denoise latents by captions: the model proper. 90 min."""
    _train("denoiser", work, steps, learning_rate, start=start)


@app.command()
def lora(work: Work = _WORK, steps: Steps = None, learning_rate: Rate = None, base: Base = None) -> None:
    """A fourth drawing style, as a LoRA."""
    _train("lora", work, steps, learning_rate, base=base)


@app.command()
def controlnet(work: Work = _WORK, steps: Steps = None, learning_rate: Rate = None, base: Base = None) -> None:
    """Draw along given edges, as a ControlNet."""
    _train("controlnet", work, steps, learning_rate, base=base)


@app.command()
def textual_inversion(work: Work = _WORK, steps: Steps = None, learning_rate: Rate = None, base: Base = None) -> None:
    """A new word, as a textual inversion."""
    _train("textual_inversion", work, steps, learning_rate, base=base)


@app.command()
def classifier(work: Work = _WORK, steps: Steps = None, learning_rate: Rate = None) -> None:
    """Name the subject of a picture: the evaluation's ruler, no part of the model. 4 min."""
    _train("classifier", work, steps, learning_rate)


@app.command()
def evaluate(
    folder: Annotated[Path | None, typer.Argument(help="A pipeline, if not the trained one.")] = None,
    work: Work = _WORK,
) -> None:
    """Draw, measure, and print the table of the model card. 6 min."""
    from training import evaluate as evaluation  # noqa: PLC0415

    evaluation.evaluate(folder or work / "denoiser" / "pipeline", work, work / "evaluation")


@app.command()
def evaluate_extras(work: Work = _WORK, base: Base = None) -> None:
    """Measure LoRA, ControlNet and textual inversion, each beside the model without it. 6 min."""
    from training import measures_report  # noqa: PLC0415
    from training.release import EXTRAS  # noqa: PLC0415

    for stage in EXTRAS:
        if (work / stage / "weights").exists():
            table = measures_report.markdown(importlib.import_module(f"training.{stage}").evaluate(work, base), "")
            (work / stage / "figures.md").write_text(table, "utf-8")
            typer.echo(table)


@app.command()
def release(work: Work = _WORK, base: Base = None) -> None:
    """Write the weights, in float16, and the figures into the package."""
    from training import release as publishing  # noqa: PLC0415

    for written in publishing.release(work, base=base):
        size = sum(file.stat().st_size for file in written.rglob("*") if file.is_file())
        typer.echo(f"{written} ({size / 1e6:.1f} MB)")


def _train(stage: str, work: Path, steps: int | None, learning_rate: float | None, **options: Path | None) -> None:
    module = importlib.import_module(f"training.{stage}")  # torch and diffusers take seconds: not for --help
    given = {"steps": steps, "learning_rate": learning_rate}
    recipe = dataclasses.replace(module.RECIPE, **{k: v for k, v in given.items() if v is not None})
    module.train(work, recipe, **options)


if __name__ == "__main__":
    app()
