"""What is left of a tenant's rate, as header fields: draft-ietf-httpapi-ratelimit-headers-10, one policy, `default`."""

from __future__ import annotations

from service.contract.rate import RATE_WINDOW_S, RequestRate


def rate_headers(rate: RequestRate | None) -> dict[str, str]:
    """Return the fields; none where there is no rate."""
    if rate is None:
        return {}
    return {
        "RateLimit-Policy": f'"default";q={rate.per_minute};w={RATE_WINDOW_S}',
        "RateLimit": f'"default";r={rate.remaining};t={rate.next_s}',
    }
