"""The gateway process: opens its clients, puts the use cases together, serves. `python -m service.app`."""

from __future__ import annotations

import gc
import socket
import sys
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from typing import cast

import redis.asyncio
import structlog
import uvicorn
from fastapi import FastAPI

from service.api.application import build_api
from service.api.gateway import Gateway
from service.api.http_protocol import GuardedHttpProtocol
from service.generations.admission import Admission
from service.generations.batch import SubmitBatch
from service.generations.cancel import CancelGeneration
from service.generations.cursors import Cursors
from service.generations.draining import DrainRates
from service.generations.erase import EraseGeneration
from service.generations.following import FollowGeneration, StreamRules
from service.generations.housekeeping import Housekeeping
from service.generations.ids import IdSource
from service.generations.inputs import InputPictures
from service.generations.listing import ListGenerations
from service.generations.models import ModelDirectory
from service.generations.origins import BucketOrigins
from service.generations.outlook.costs import CostBook
from service.generations.outlook.forecaster import Forecaster
from service.generations.outlook.reading import Outlooks
from service.generations.pictures import PictureLimits
from service.generations.places import TenantPlaces
from service.generations.previews import SeePreview
from service.generations.remote import FetchRules, RemotePictures
from service.generations.rerun import RerunGeneration
from service.generations.submit import SubmitGeneration, SubmitRules
from service.generations.uploaded import UploadedPictures
from service.generations.uploads import UploadRules, Uploads
from service.generations.usage import TellUsage
from service.generations.validate import ValidateGeneration
from service.generations.vitals import Vitals
from service.generations.wait import WatchGeneration
from service.generations.webhooks import ManageWebhooks
from service.jobs.async_store import AsyncJobStore
from service.jobs.connection import connect_async
from service.jobs.deliveries import AsyncDeliveries
from service.jobs.forecasts import ForecastStore
from service.jobs.listing import JobListing
from service.jobs.uploads import UploadLimits, UploadStore
from service.jobs.waiting import Waiters
from service.net.egress import Egress, EgressRules
from service.settings.egress import FetchSettings
from service.settings.gateway import AdmissionSettings, AuthSettings, GatewaySettings, HttpSettings
from service.settings.groups import StorageSettings
from service.settings.reading import SettingsError
from service.settings.telemetry import MetricsSettings
from service.settings.uploads import UploadSettings
from service.storage.s3 import ObjectStorage
from service.telemetry import metric_names
from service.telemetry.exposition import MetricsPortTaken, expose
from service.telemetry.gateway_metrics import GatewayMetrics, Gauges
from service.telemetry.logs import configure_logging
from service.telemetry.tracers import TracingUnavailable, open_tracer
from service.telemetry.tracing import NO_TRACER, Tracer
from service.tenants.authentication import Authenticator, KeyAuthenticator, LocalAuthenticator
from service.tenants.sealing import Sealer
from service.tenants.webhook_secrets import WebhookSecrets

log = structlog.get_logger(__name__)

#: Calls of the storage at once in this process; each is a round trip of milliseconds.
_STORAGE_THREADS = 16


def create_app(
    settings: GatewaySettings, *, metrics: GatewayMetrics | None = None, tracer: Tracer = NO_TRACER
) -> FastAPI:
    """Return the app; its lifespan opens and closes everything it stands on. `metrics`: None = nothing is counted."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        # What was opened is closed in reverse, also where a later part does not open, or what runs inside fails.
        async with AsyncExitStack() as opened:
            client = await opened.enter_async_context(connect_async(settings.redis))
            store = AsyncJobStore(client)
            # Once more is enough: whoever waits for the answer tries again by themselves.
            storage = ObjectStorage(settings.storage, attempts=2)
            opened.callback(storage.close)
            egress = Egress(EgressRules.of(settings.egress))
            opened.push_async_callback(egress.aclose)
            waiters = Waiters(client, store)
            opened.push_async_callback(waiters.stop)
            await waiters.start()
            housekeeping = Housekeeping(
                store,
                refuse_ratio=settings.admission.memory_refuse_ratio,
                interval_s=settings.admission.memory_sample_s,
            )
            opened.push_async_callback(housekeeping.stop)
            housekeeping.start()
            threads = opened.enter_context(ThreadPoolExecutor(_STORAGE_THREADS, thread_name_prefix="storage"))
            app.state.gateway = _gateway(
                settings,
                client,
                store=store,
                storage=storage,
                waiters=waiters,
                housekeeping=housekeeping,
                egress=egress,
                threads=threads,
            )
            origins = BucketOrigins(storage, settings.uploads.origin_list, threads)
            opened.push_async_callback(origins.stop)
            origins.start()
            gateway: Gateway = app.state.gateway
            await opened.enter_async_context(_measured(metrics, gateway, waiters, housekeeping))
            await opened.enter_async_context(_looking_ahead(client, gateway))
            yield

    return build_api(
        settings.http, local_only=settings.auth.auth == "none", lifespan=lifespan, meter=metrics, tracer=tracer
    )


@asynccontextmanager
async def _measured(
    metrics: GatewayMetrics | None, gateway: Gateway, waiters: Waiters, housekeeping: Housekeeping
) -> AsyncIterator[None]:
    """Have metrics show the parts of a gateway until the block ends."""
    if metrics is None:
        yield
        return
    vitals = Vitals(metrics=metrics, store=gateway.store, storage=gateway.storage, threads=gateway.threads)
    gauges = Gauges(
        (metric_names.WAITS_OPEN, "Requests held until a generation ends", lambda: waiters.waits),
        (metric_names.STREAMS_OPEN, "Streams of events that are open", lambda: gateway.follow.streams),
        (metric_names.REDIS_MEMORY_RATIO, "Used memory of Redis / maxmemory", lambda: housekeeping.memory_ratio),
    )
    housekeeping.on_reaped = lambda done: metrics.reaped(leases=done.leases, deadlines=done.deadlines, bells=done.bells)
    gateway.store.on_accepted = lambda job: metrics.accepted(job.priority)
    metrics.watch(gauges, vitals)
    vitals.start()
    try:
        yield
    finally:
        await vitals.stop()


@asynccontextmanager
async def _looking_ahead(client: redis.asyncio.Redis, gateway: Gateway) -> AsyncIterator[None]:
    """Keep the outlooks of a gateway until the block ends."""
    forecaster = Forecaster(
        store=ForecastStore(client), models=gateway.models, costs=CostBook(gateway.store), outlooks=gateway.outlooks
    )
    forecaster.start()
    try:
        yield
    finally:
        await forecaster.stop()


def _gateway(
    settings: GatewaySettings,
    client: redis.asyncio.Redis,
    *,
    store: AsyncJobStore,
    storage: ObjectStorage,
    waiters: Waiters,
    housekeeping: Housekeeping,
    egress: Egress,
    threads: ThreadPoolExecutor,
) -> Gateway:
    ids = IdSource(store)
    models = ModelDirectory(store, cache_s=settings.admission.models_cache_s)
    upload_store = UploadStore(client, _upload_limits(settings.uploads, settings.storage))
    limits = _picture_limits(settings.admission)
    submit = SubmitGeneration(
        store=store,
        inputs=InputPictures(
            store=store,
            storage=storage,
            remote=RemotePictures(egress=egress, rules=_fetch_rules(settings.fetch), limits=limits, threads=threads),
            uploaded=UploadedPictures(store=upload_store, storage=storage, limits=limits, threads=threads),
            limits=limits,
            threads=threads,
        ),
        models=models,
        ids=ids,
        admission=Admission(memory=housekeeping, drains=DrainRates(store)),
        rules=_rules(settings.admission),
        check_url=egress.check,
    )
    watch = WatchGeneration(store=store, waiters=waiters, ids=ids)
    outlooks = Outlooks()
    return Gateway(
        authenticator=_authenticator(settings.auth, client),
        submit=submit,
        batch=SubmitBatch(submit),
        rerun=RerunGeneration(submit=submit, watch=watch),
        watch=watch,
        follow=FollowGeneration(watch=watch, waiters=waiters, outlooks=outlooks, rules=_stream_rules(settings)),
        preview=SeePreview(store=store, watch=watch),
        cancel=CancelGeneration(store=store, ids=ids),
        erase=EraseGeneration(store=store, ids=ids),
        listing=ListGenerations(listing=JobListing(client), cursors=Cursors(ids)),
        models=models,
        outlooks=outlooks,
        validate=ValidateGeneration(submit=submit, models=models, outlooks=outlooks, costs=CostBook(store)),
        usage=TellUsage(store),
        webhooks=_webhooks(settings, client),
        uploads=_uploads(settings, upload_store, storage=storage, ids=ids, memory=housekeeping, threads=threads),
        store=store,
        storage=storage,
        threads=threads,
        wait_cap_s=settings.http.wait_cap_s,
        wait_places=TenantPlaces(
            "As many calls as this tenant may have waiting at once are; come again, or ask without Prefer: wait.",
            _of_each_tenant(settings, settings.http.tenant_wait_limit),
        ),
    )


def _rules(admission: AdmissionSettings) -> SubmitRules:
    return SubmitRules(
        retain_s=admission.retain_s,
        retain_max_s=admission.retain_max_s,
        pool_queued=admission.queue_limit,
    )


def _upload_limits(uploads: UploadSettings, storage: StorageSettings) -> UploadLimits:
    return UploadLimits(
        ttl_ms=1000 * uploads.ttl_s,
        unused=uploads.limit,
        unused_bytes=uploads.limit_bytes,
        form_ttl_ms=1000 * min(uploads.ttl_s, storage.link_ttl_s),
    )


def _authenticator(auth: AuthSettings, client: redis.asyncio.Redis) -> Authenticator:
    if auth.auth == "none":
        return LocalAuthenticator()
    return KeyAuthenticator(client, cache_s=auth.key_cache_s, failures_per_minute=auth.auth_failures_per_minute)


def _webhooks(settings: GatewaySettings, client: redis.asyncio.Redis) -> ManageWebhooks:
    secrets = WebhookSecrets(client, Sealer(settings.webhooks.keys))
    return ManageWebhooks(deliveries=AsyncDeliveries(client), secrets=secrets)


def _uploads(
    settings: GatewaySettings,
    store: UploadStore,
    *,
    storage: ObjectStorage,
    ids: IdSource,
    memory: Housekeeping,
    threads: ThreadPoolExecutor,
) -> Uploads:
    rules = UploadRules(
        max_bytes=settings.admission.input_limit_bytes,
        ttl_s=settings.uploads.ttl_s,
        form_ttl_s=settings.storage.link_ttl_s,
    )
    return Uploads(store=store, storage=storage, ids=ids, memory=memory, rules=rules, threads=threads)


def _picture_limits(admission: AdmissionSettings) -> PictureLimits:
    return PictureLimits(
        max_bytes=admission.input_limit_bytes,
        max_side_px=admission.input_side_px,
        max_pixels=admission.input_pixels,
    )


def _fetch_rules(fetch: FetchSettings) -> FetchRules:
    return FetchRules(
        timeout_s=fetch.timeout_s,
        at_once=fetch.limit,
        tenant_at_once=fetch.tenant_limit,
        held_bytes=fetch.budget_bytes,
    )


def _stream_rules(settings: GatewaySettings) -> StreamRules:
    http = settings.http
    return StreamRules(
        limit=http.stream_limit,
        tenant_limit=_of_each_tenant(settings, http.tenant_stream_limit),
        heartbeat_s=http.stream_heartbeat_s,
        cap_s=http.stream_cap_s,
    )


def _of_each_tenant(settings: GatewaySettings, limit: int) -> int | None:
    """Return the limit, None where everybody is one tenant: there is nobody to keep a place for."""
    return limit if settings.auth.auth == "keys" else None


class _Server(uvicorn.Server):
    """uvicorn that says where it listens, and ends waits and streams before it waits for them."""

    def __init__(self, config: uvicorn.Config, app: FastAPI) -> None:
        super().__init__(config)
        self._app = app

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        # What was imported stays: each full collection would go through all of it, 80 ms in which nobody is answered.
        gc.collect()
        gc.freeze()
        for each in sockets or []:
            host, port = each.getsockname()[:2]
            log.info("gateway_listening", host=host, port=port)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        log.info("gateway_stopping")
        cast("Gateway", self._app.state.gateway).watch.release()
        await super().shutdown(sockets)
        # uvicorn would raise the signal once more and end as killed by it; a stop that was asked for is no failure.
        self._captured_signals.clear()


def _listen(http: HttpSettings) -> socket.socket:
    """Return the listening socket; raises `SettingsError` with what to do where the address cannot be had."""
    family = socket.AF_INET6 if ":" in http.host else socket.AF_INET
    try:
        return socket.create_server((http.host, http.port), family=family, backlog=2048)
    except OSError as err:
        # Python adds the address to the reason.
        reason = (err.strerror or str(err)).partition(" (")[0].lower()
        msg = f"cannot listen on {http.host} port {http.port} ({reason}); set DARKROOM_HOST or PORT to another"
        raise SettingsError(msg) from err


def _metrics(settings: MetricsSettings) -> GatewayMetrics | None:
    """Open the port of the metrics, where there is to be one; raises `MetricsPortTaken`."""
    if not settings.port:
        return None
    metrics = GatewayMetrics()
    expose(metrics.registry, settings.host, settings.port)
    return metrics


def main() -> None:
    """Serve until SIGTERM or SIGINT; a wrong setting or a taken port ends the process with one line."""
    try:
        settings = GatewaySettings.from_environment()
        listening = _listen(settings.http)
    except SettingsError as err:
        sys.exit(f"darkroom gateway: {err}")
    try:
        metrics = _metrics(settings.metrics)
        tracer = open_tracer(settings.tracing.collector, "darkroom-gateway")
    except (MetricsPortTaken, TracingUnavailable) as err:
        listening.close()
        sys.exit(f"darkroom gateway: {err}")
    configure_logging(settings.log.log, settings.log.log_level)
    http = settings.http
    app = create_app(settings, metrics=metrics, tracer=tracer)
    config = uvicorn.Config(
        app,
        http=GuardedHttpProtocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=bool(http.trusted_proxies),
        forwarded_allow_ips=http.trusted_proxies or None,
        timeout_keep_alive=http.keep_alive_s,
        timeout_graceful_shutdown=http.shutdown_grace_s,
    )
    _Server(config, app).run(sockets=[listening])
    tracer.close()


if __name__ == "__main__":
    main()
