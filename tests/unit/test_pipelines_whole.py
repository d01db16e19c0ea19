"""Which pipelines are drawn whole is told by their class in diffusers, and what they can do by their configs."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from service.contract.catalog import CatalogEntry, EngineOptions, SamplingDefaults
from service.contract.schedulers import OWN_SCHEDULER
from tests.exotic_models import exotic_model
from tests.models import LIBRARY_WARNINGS, tiny_model
from worker.pipelines.abilities import read_abilities
from worker.pipelines.card import make_card
from worker.pipelines.errors import UnusableModel
from worker.pipelines.loading import load, prepare
from worker.pipelines.options import check_execution

pytestmark = LIBRARY_WARNINGS


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the tiny PixArt whose configs a test may change."""
    return shutil.copytree(exotic_model("pixart"), tmp_path / "model")


def edit(path: Path, **changes: Any) -> None:
    """Set fields of a JSON file; None removes."""
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


def rename(folder: Path, name: Any) -> None:
    edit(folder / "model_index.json", _class_name=name)


@pytest.mark.parametrize(
    ("name", "side_px", "step_px", "tokens", "steps", "guidance", "unused"),
    [
        ("pixart", 256, 16, 118, 20, 4.5, ()),
        ("pag", 64, 8, 75, 50, 7.5, ()),
        ("ldm", 64, 8, 75, 50, 1.0, ("negative_prompt",)),
    ],
)
def test_abilities_come_from_the_signature_and_the_configs(
    name: str, side_px: int, step_px: int, tokens: int, steps: int, guidance: float, unused: tuple[str, ...]
) -> None:
    card = prepare(CatalogEntry(id="m", source=str(exotic_model(name)))).card
    assert (card.family, card.execution, card.tasks) == ("other", "whole", ("text-to-image",))
    assert (card.width, card.height, card.size_step_px, card.max_prompt_tokens) == (side_px, side_px, step_px, tokens)
    assert (card.steps, card.guidance_scale) == (steps, guidance)
    assert set(card.unused_fields) == {"guidance_rescale", "eta", "sigmas", *unused}
    assert card.schedulers == (card.scheduler,)


def test_the_operators_defaults_win() -> None:
    defaults = SamplingDefaults(width=512, height=384, steps=7, guidance_scale=2.0)
    card = prepare(CatalogEntry(id="m", source=str(exotic_model("pixart")), defaults=defaults)).card
    assert (card.width, card.height, card.steps, card.guidance_scale) == (512, 384, 7, 2.0)


def test_a_model_that_is_batched_says_so_and_takes_all_fields() -> None:
    card = prepare(CatalogEntry(id="m", source=str(tiny_model("sd15")))).card
    assert (card.family, card.execution, card.unused_fields) == ("sd1", "batched", ())


def test_a_model_that_is_offloaded_draws_whole_whatever_its_family() -> None:
    entry = CatalogEntry(id="m", source="x", options=EngineOptions(offload="model"))
    card = make_card(entry, read_abilities(tiny_model("sdxl")), dtype="float16", sha256="0" * 64)
    assert (card.family, card.execution) == ("sdxl", "whole")
    assert card.tasks == ("text-to-image", "image-to-image", "inpaint")


@pytest.mark.parametrize("how", ["model", "sequential"])
def test_there_is_nothing_to_offload_from_on_a_cpu(how: Any) -> None:
    entry = CatalogEntry(id="m", source=str(tiny_model("sd15")), device="cpu", options=EngineOptions(offload=how))
    with pytest.raises(UnusableModel, match=f"options.offload {how}: .* needs a GPU"):
        prepare(entry)


@pytest.mark.parametrize("name", ["compile", "graphs"])
def test_options_of_shared_calls_are_refused_where_none_is_shared(name: str) -> None:
    options = EngineOptions.model_validate({name: True})
    check_execution(options, "batched")
    with pytest.raises(UnusableModel, match=rf"options\.{name}: this model draws whole requests"):
        check_execution(options, "whole")
    check_execution(EngineOptions(channels_last=True, offload="model"), "whole")


def test_a_sampler_that_the_table_does_not_know_has_a_name_of_its_own(folder: Path) -> None:
    edit(folder / "scheduler" / "scheduler_config.json", _class_name="DDPMWuerstchenScheduler")
    abilities = read_abilities(folder)
    assert (abilities.scheduler, abilities.schedulers) == (OWN_SCHEDULER, (OWN_SCHEDULER,))


def test_a_size_that_no_config_tells_has_to_be_in_the_catalogue(folder: Path) -> None:
    edit(folder / "transformer" / "config.json", sample_size=None)
    with pytest.raises(UnusableModel, match="Set defaults"):
        prepare(CatalogEntry(id="m", source=str(folder)))
    with pytest.raises(UnusableModel, match="Set defaults"):
        prepare(CatalogEntry(id="m", source=str(folder), defaults=SamplingDefaults(width=512)))
    card = prepare(CatalogEntry(id="m", source=str(folder), defaults=SamplingDefaults(width=512, height=256))).card
    assert (card.width, card.height) == (512, 256)


@pytest.mark.parametrize(
    ("change", "step_px"),
    [
        pytest.param(lambda f: edit(f / "transformer" / "config.json", patch_size=4), 32, id="larger patches"),
        pytest.param(lambda f: edit(f / "transformer" / "config.json", patch_size=1), 16, id="packed by the pipeline"),
        pytest.param(lambda f: edit(f / "vae" / "config.json", block_out_channels=None), 64, id="factor not told"),
        pytest.param(
            lambda f: edit(f / "vae" / "config.json", block_out_channels=None, encoder_block_out_channels=[8] * 6),
            64,
            id="deep autoencoder",
        ),
        pytest.param(
            lambda f: edit(f / "model_index.json", prior_prior=["diffusers", "PriorTransformer"]), 128, id="two stages"
        ),
    ],
)
def test_the_step_of_sizes_follows_from_autoencoder_and_patches(
    folder: Path, change: Callable[[Path], None], step_px: int
) -> None:
    change(folder)
    assert read_abilities(folder).size_step_px == step_px


@pytest.mark.parametrize(
    ("file", "changes", "tokens"),
    [
        ("tokenizer/tokenizer_config.json", {"model_max_length": 64}, 62),
        ("tokenizer/tokenizer_config.json", {"model_max_length": 512}, 118),
    ],
)
def test_prompts_are_as_long_as_pipeline_and_tokenizer_both_take(
    folder: Path, file: str, changes: dict[str, Any], tokens: int
) -> None:
    edit(folder / file, **changes)
    assert read_abilities(folder).max_prompt_tokens == tokens


@pytest.mark.parametrize(
    "name",
    [
        "AuraFlowPipeline",
        "CogView4Pipeline",
        "HunyuanDiTPipeline",
        "KandinskyV22CombinedPipeline",
        "Lumina2Pipeline",
        "QwenImagePipeline",
        "SanaPAGPipeline",
        "StableCascadeCombinedPipeline",
        "WuerstchenCombinedPipeline",
        "ZImagePipeline",
    ],
)
def test_text_to_image_pipelines_are_taken_as_far_as_their_parts_are_there(folder: Path, name: str) -> None:
    edit(folder / "model_index.json", _class_name=name, vae=None)
    with pytest.raises(UnusableModel, match=rf"names the pipeline {name}, but no .*(vae|decoder|movq)"):
        read_abilities(folder)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("IFImg2ImgPipeline", "which does not take width, height"),
        ("IFSuperResolutionPipeline", "which works with image"),
        ("PixArtAlphaImg2ImgPipeline", "does not have"),
        ("SanaSprintImg2ImgPipeline", "which works with image"),
        ("SanaControlNetPipeline", "which needs controlnet"),
        ("CogView4ControlPipeline", "which works with control_image"),
        ("QwenImageEditPipeline", "which works with image"),
        ("WanPipeline", "which works with num_frames"),
        ("HunyuanSkyreelsImageToVideoPipeline", "which needs image"),
        ("SanaVideoPipeline", "which works with frames"),
        ("AudioLDM2Pipeline", "which does not take width, height"),
        ("StableCascadePriorPipeline", "which works with image_embeds, images"),
        ("KandinskyV22Pipeline", "which does not take prompt"),
        ("BlipDiffusionPipeline", "which needs reference_image"),
        ("StableDiffusionLDM3DPipeline", "makes no images"),
        ("DiffusionPipeline", "which does not take prompt"),
        ("DDPMPipeline", "which does not take prompt"),
        ("NoSuchPipeline", "diffusers 0.* does not have"),
        ("UNet2DConditionModel", "does not have"),
        ("os", "does not have"),
        (["pipeline", "MyPipeline"], "the folder's own code"),
        (None, "the folder's own code"),
    ],
)
def test_what_is_not_text_to_image_or_not_of_diffusers_is_refused_in_one_line(
    folder: Path, name: Any, found: str
) -> None:
    rename(folder, name)
    with pytest.raises(UnusableModel, match=found) as refused:
        read_abilities(folder)
    assert "\n" not in str(refused.value)
    assert "text-to-image pipelines that need no more than a prompt" in str(refused.value)


@pytest.mark.parametrize(
    ("component", "value", "found"),
    [
        ("transformer", ["my_code", "MyTransformer"], "The transformer is my_code.MyTransformer"),
        ("transformer", ["diffusers", "AutoModel"], "The transformer is diffusers.AutoModel"),
        ("tokenizer", ["transformers", "AutoTokenizer"], "The tokenizer is transformers.AutoTokenizer"),
        ("helper", ["..", "Helper"], "The helper is ...Helper"),
        ("transformer", [None, None], "but no transformer"),
        ("scheduler", [None, None], "names no scheduler|but no scheduler"),
    ],
)
def test_code_of_the_folders_own_and_missing_parts_are_refused(
    folder: Path, component: str, value: list[Any], found: str
) -> None:
    edit(folder / "model_index.json", **{component: value})
    with pytest.raises(UnusableModel, match=found):
        read_abilities(folder)


def test_code_that_lies_in_the_folder_is_never_run(folder: Path, tmp_path: Path) -> None:
    witness = tmp_path / "ran"
    code = f"open({str(witness)!r}, 'w')\n"
    for place in ("pipeline.py", "PixArtAlphaPipeline.py", "transformer/transformer.py", "tokenizer/tokenizer.py"):
        (folder / place).write_text(code)
    edit(folder / "text_encoder" / "config.json", auto_map={"AutoModel": "modeling.Evil"})
    edit(folder / "transformer" / "config.json", auto_map={"AutoModel": "transformer.Evil"})
    (folder / "text_encoder" / "modeling.py").write_text(code)
    assert load(CatalogEntry(id="m", source=str(folder))).card.family == "other"
    assert not witness.exists()


def test_a_vocabulary_of_sentencepiece_is_read_where_there_is_no_other(folder: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece", reason="comes with the extra worker")
    written = io.BytesIO()
    texts = ["a red apple", "a green pear", "the quick brown fox jumps over the lazy dog"]
    marks = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(20 * texts),
        model_writer=written,
        vocab_size=30,
        hard_vocab_limit=False,
        minloglevel=2,
        **marks,
    )
    for path in (folder / "tokenizer").iterdir():
        path.unlink()
    (folder / "tokenizer" / "spiece.model").write_bytes(written.getvalue())
    config = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0}
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load(CatalogEntry(id="m", source=str(folder))).pipeline.tokenizer
    own = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
    assert tokenizer("a red apple").input_ids == [*own.encode("a red apple"), marks["eos_id"]]
