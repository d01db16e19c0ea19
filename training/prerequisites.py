"""What a stage needs before it can begin, and what is said where it is missing: one line, and what makes it."""

import importlib.util
from pathlib import Path

#: Where stages keep what they make, unless told otherwise.
WORK = Path(".training")
#: Stage -> folder, in the package, of what it adds to the model.
EXTRAS = {"lora": "tiny-emoji-ink", "controlnet": "tiny-emoji-edges", "textual_inversion": "tiny-emoji-turquoise"}

_DRAWINGS = "drawings.npz"
_AUTOENCODER = "autoencoder/weights/config.json"
_TEXT_ENCODER = "text_encoder/weights/config.json"
_PIPELINE = "denoiser/pipeline/model_index.json"
_CLASSIFIER = "classifier/weights/config.json"
#: A file of the work, and the stage that makes it.
_MADE_BY = {
    _DRAWINGS: "data",
    _AUTOENCODER: "autoencoder",
    _TEXT_ENCODER: "text_encoder",
    _PIPELINE: "denoiser",
    _CLASSIFIER: "classifier",
}
#: A stage, and the files of the work that it reads.
_READS = {
    "autoencoder": (_DRAWINGS,),
    "text_encoder": (_DRAWINGS,),
    "denoiser": (_DRAWINGS, _AUTOENCODER, _TEXT_ENCODER),
    "lora": (_DRAWINGS, _PIPELINE),
    "controlnet": (_DRAWINGS, _PIPELINE),
    "textual_inversion": (_DRAWINGS, _PIPELINE),
    "classifier": (_DRAWINGS,),
    "evaluate": (_DRAWINGS, _PIPELINE, _CLASSIFIER),
    "evaluate_extras": (_DRAWINGS, _PIPELINE),
    "release": (_PIPELINE,),
}
#: A stage, what a folder given to it takes the place of, and the files that the folder must have.
_GIVEN = {
    "autoencoder": ("", ("config.json",)),
    "denoiser": (_TEXT_ENCODER, ("text_encoder/config.json", "unet/config.json")),
}
_GIVEN_PIPELINE = (_PIPELINE, ("model_index.json",))


class NotReady(Exception):
    """Something that a stage needs is missing; the message says what, and where it comes from."""


def check(stage: str, work: Path, given: Path | None = None) -> None:
    """Raise `NotReady` for the first thing that the stage would look for in vain.

    `given` is the folder that the stage starts from, or the pipeline that it is for, where one was named.
    """
    replaced, expected = _GIVEN.get(stage, _GIVEN_PIPELINE)
    if given is not None:
        for name in expected:
            if not (given / name).exists():
                raise NotReady(f"{given} is not what {as_command(stage, work)} takes: there is no {name} in it.")
    for name in _READS[stage]:
        if not (work / name).exists() and not (given is not None and name == replaced):
            raise NotReady(f"{work / name} is missing. Run first: {as_command(_MADE_BY[name], work)}")


def trained_extras(work: Path) -> list[str]:
    """Return the stages of `EXTRAS` that have left weights; raises `NotReady` where none has."""
    trained = [stage for stage in EXTRAS if (work / stage / "weights").exists()]
    if not trained:
        commands = ", or ".join(as_command(stage, work) for stage in EXTRAS)
        raise NotReady(f"No extra was trained in {work}. Run first: {commands}")
    return trained


def check_module(name: str) -> None:
    """Raise `NotReady` where a module is not installed."""
    if importlib.util.find_spec(name) is None:
        raise NotReady(missing_module(name))


def missing_module(name: str) -> str:
    """Return what to do where a module is not installed."""
    extras = "pip install -c constraints.txt -e '.[worker,training]'"
    return f"The module {name} is not installed; training has extras of its own. Run first: {extras}"


def as_command(stage: str, work: Path) -> str:
    """Return the command of a stage, as it is typed."""
    options = "" if work == WORK else f" --work {work}"
    return f"python -m training {stage.replace('_', '-')}{options}"
