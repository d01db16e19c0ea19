"""What handlers work with: the use cases, put together once per process by the composition root."""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass

from fastapi import Request

from service.api.access import MissingScope
from service.api.operation import KEY_SCOPE
from service.api.request_trace import trace_admitted
from service.contract.errors import Unauthenticated
from service.generations.batch import SubmitBatch
from service.generations.cancel import CancelGeneration
from service.generations.erase import EraseGeneration
from service.generations.following import FollowGeneration
from service.generations.listing import ListGenerations
from service.generations.models import ModelDirectory
from service.generations.outlook.reading import Outlooks
from service.generations.places import TenantPlaces
from service.generations.previews import SeePreview
from service.generations.rerun import RerunGeneration
from service.generations.submit import SubmitGeneration
from service.generations.uploads import Uploads
from service.generations.usage import TellUsage
from service.generations.validate import ValidateGeneration
from service.generations.wait import WatchGeneration
from service.generations.webhooks import ManageWebhooks
from service.jobs.async_store import AsyncJobStore
from service.storage.s3 import ObjectStorage
from service.telemetry.context import bind_tenant
from service.tenants.authentication import Authenticator, Caller


@dataclass(frozen=True, slots=True)
class Gateway:
    """The typed state of the app."""

    authenticator: Authenticator
    submit: SubmitGeneration
    batch: SubmitBatch
    rerun: RerunGeneration
    watch: WatchGeneration
    follow: FollowGeneration
    preview: SeePreview
    cancel: CancelGeneration
    erase: EraseGeneration
    listing: ListGenerations
    models: ModelDirectory
    outlooks: Outlooks
    validate: ValidateGeneration
    usage: TellUsage
    webhooks: ManageWebhooks
    uploads: Uploads
    store: AsyncJobStore
    storage: ObjectStorage
    #: Threads for calls of the storage, which block.
    threads: Executor
    #: s, the longest `Prefer: wait`.
    wait_cap_s: int
    #: Who waits holds one.
    wait_places: TenantPlaces


def gateway_of(request: Request) -> Gateway:
    """Return the app's state."""
    return request.app.state.gateway


async def caller_of(request: Request) -> Caller:
    """Return who calls; raises `Unauthenticated`, `MissingScope`, `TooManyAttempts` or `Unavailable`."""
    headers = request.headers.getlist("authorization")
    if len(headers) > 1:
        # Whatever stands in front of us may have looked at the other one.
        raise Unauthenticated("Send one Authorization header.")
    # Behind a proxy that we trust, whom that one saw: uvicorn has put it here.
    client = request.scope.get("client")
    caller = await gateway_of(request).authenticator.caller(
        headers[0] if headers else None, address=client[0] if client else None
    )
    bind_tenant(caller.tenant)
    trace_admitted(request.scope, caller.tenant)
    required = request.scope[KEY_SCOPE]
    if required not in caller.scopes:
        raise MissingScope(required)
    return caller
