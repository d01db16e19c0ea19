"""How often an address may come with a wrong key."""

from __future__ import annotations

import pytest

from service.tenants.attempts import FailedAttempts, address_group
from tests.clock import Clock


def test_a_minutes_failures_may_come_at_once_and_then_one_by_one() -> None:
    clock = Clock(1000)
    attempts = FailedAttempts(per_minute=6, clock=clock)
    for _ in range(6):
        assert attempts.wait_s("192.0.2.1") == 0
        attempts.count("192.0.2.1")
    assert attempts.wait_s("192.0.2.1") == 10
    assert attempts.wait_s("192.0.2.2") == 0
    clock.now_s += 9.5
    assert attempts.wait_s("192.0.2.1") == 1
    clock.now_s += 0.5
    assert attempts.wait_s("192.0.2.1") == 0
    attempts.count("192.0.2.1")
    assert attempts.wait_s("192.0.2.1") == 10
    clock.now_s += 60
    for _ in range(6):
        assert attempts.wait_s("192.0.2.1") == 0
        attempts.count("192.0.2.1")
    assert attempts.wait_s("192.0.2.1") == 10


def test_failures_beyond_the_last_lengthen_no_wait() -> None:
    attempts = FailedAttempts(per_minute=60, clock=Clock(1000))
    for _ in range(1000):
        attempts.count("192.0.2.1")
    assert attempts.wait_s("192.0.2.1") == 1


@pytest.mark.parametrize(
    ("address", "group"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:DB8:1:2::", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("unknown", ""),
        ("", ""),
        (None, ""),
    ],
)
def test_an_ipv6_network_is_one_client_and_so_is_what_is_no_address(address: str | None, group: str) -> None:
    assert address_group(address) == group


def test_however_many_addresses_come_memory_is_bounded_and_those_that_fail_now_are_remembered() -> None:
    attempts = FailedAttempts(per_minute=1, clock=Clock(1000))
    for number in range(30_000):
        attempts.count(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
        attempts.count("192.0.2.1")
    assert len(attempts) == 10_000
    assert attempts.wait_s("192.0.2.1") == 60
    assert attempts.wait_s("10.0.0.1") == 0
