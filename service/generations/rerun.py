"""Drawing a generation again: the same specification, as a generation of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, create_model

from service.contract.catalog import ModelCard
from service.contract.errors import FieldError, InvalidRequest, ModelChanged
from service.contract.generation import GenerationSpec
from service.contract.job import Job
from service.generations.field_errors import MAX_ERRORS, pointer
from service.generations.idempotency import IdempotentCall
from service.generations.request import GenerationRequest
from service.generations.specification import Draft
from service.generations.submit import SubmitGeneration, Submitted
from service.generations.wait import WatchGeneration
from service.tenants.authentication import Caller

#: What a rerun may say for itself; what is drawn is the original's.
OWN_FIELDS: Final = ("priority", "labels", "webhook", "retain_s", "output")

_FIELDS: dict[str, Any] = {
    "same": (
        Annotated[
            bool | None,
            Field(description="Refuse (`model_changed`) where the model's files are others by now. Default: true."),
        ],
        None,
    )
} | {name: (info.annotation, info) for name, info in GenerationRequest.model_fields.items() if name in OWN_FIELDS}

#: The body of a rerun, for the contract; its own fields are those of any request.
RERUN_REQUEST: type[BaseModel] = create_model(
    "RerunRequest",
    __config__=ConfigDict(extra="forbid", json_schema_extra={"examples": [{"same": True, "labels": {"order": "12"}}]}),
    __doc__="What is not the original's. The body may also be left out.",
    **_FIELDS,
)

#: Stands for an input picture while a request is checked; the picture itself is copied from the original.
_COPIED = {"base64": "copied"}


class RerunGeneration:
    """The use case: what the original asked for is asked for anew, its pictures copied."""

    def __init__(self, *, submit: SubmitGeneration, watch: WatchGeneration) -> None:
        self._submit = submit
        self._watch = watch

    async def rerun(
        self,
        caller: Caller,
        generation_id: str,
        body: Mapping[str, Any],
        *,
        call: IdempotentCall | None,
        request_id: str,
    ) -> Submitted:
        """Accept the generation anew, whatever its status.

        Raises `NotFound`, `Gone`, `ModelChanged`, and what `SubmitGeneration.submit_all` raises.
        """

        async def drafting(cards: Sequence[ModelCard]) -> Sequence[Draft]:
            same, own = _own(body)
            original = await self._watch.get(caller.tenant, generation_id)
            card = _card(original, cards, same=same)
            spec = original.spec
            drafted = self._submit.draft(asked(spec, card) | own, cards)
            pictures = {"image": spec.image, "mask": spec.mask}
            return [
                replace(
                    drafted,
                    request=drafted.request.model_copy(update=dict.fromkeys(pictures)),
                    rerun_of=original.id,
                    copied={name: stored for name, stored in pictures.items() if stored},
                )
            ]

        return await self._submit.submit_all(caller, drafting, call=call, request_id=request_id)


def _own(body: Mapping[str, Any]) -> tuple[bool, dict[str, Any]]:
    """Return whether the model has to be the same, and what the call says for itself; raises `InvalidRequest`."""
    own = {name: value for name, value in body.items() if name != "same" and value is not None}
    same = body.get("same")
    allowed = f"is not a field of a rerun, which draws the same again: there are same, {', '.join(OWN_FIELDS)}"
    errors = [FieldError(pointer(name), allowed) for name in body if name not in ("same", *OWN_FIELDS)]
    if not isinstance(same, bool | None):
        errors.append(FieldError("/same", "must be true or false"))
    if errors:
        raise InvalidRequest(errors[:MAX_ERRORS])
    return same is not False, own


def _card(original: Job, cards: Sequence[ModelCard], *, same: bool) -> ModelCard:
    card = next((card for card in cards if card.id == original.model), None)
    if card is None:
        raise ModelChanged(f"The model {original.model} is not served any more; a rerun needs it.")
    # Until it has drawn something nobody knows which files a generation was asked of.
    if same and original.receipt and original.receipt.model_sha256 != card.sha256:
        raise ModelChanged(
            f"The files of the model {original.model} are not those that drew this generation: its receipt has another "
            'model_sha256. Send {"same": false} to draw with the present ones.'
        )
    return card


def asked(spec: GenerationSpec, card: ModelCard) -> dict[str, Any]:
    """Return the request that asks for a specification in so many words, so that today's limits hold for it too.

    What does nothing with the model is left out, as it has to be.
    """
    body = spec.model_dump(exclude_none=True, exclude={"image", "mask", *card.unused_fields})
    body["output"] = spec.output.model_dump(exclude_none=True)
    return body | {name: _COPIED for name in ("image", "mask") if getattr(spec, name)}
