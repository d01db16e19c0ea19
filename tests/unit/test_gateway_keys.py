"""Keys as text, and limits of tenants."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from service.tenants.key_text import hash_secret, new_key, parse_key
from service.tenants.records import Tenant, TenantLimits


def test_a_key_is_read_back_from_its_text_and_opens_its_own_hash_only() -> None:
    key, other = new_key(), new_key()
    assert parse_key(str(key)) == key
    assert key.opens(hash_secret(key.secret))
    assert not other.opens(hash_secret(key.secret))


def test_a_secret_has_at_least_128_random_bits() -> None:
    assert len(new_key().secret) * 5 >= 128
    assert len({new_key().secret for _ in range(1000)}) == 1000


def test_a_key_does_not_show_its_secret_when_it_is_printed_for_debugging() -> None:
    key = new_key()
    assert key.secret not in repr(key)


@pytest.mark.parametrize("text", ["", "dk__", "dk_a_b", "sk-abc", "dk_" + "a" * 12 + "_" + "A" * 32, "dk_é_b"])
def test_text_of_another_form_is_no_key(text: str) -> None:
    assert parse_key(text) is None


def test_a_key_with_anything_behind_it_is_no_key() -> None:
    assert parse_key(f"{new_key()}\n") is None


@pytest.mark.parametrize("tenant_id", ["a", "a-b", "0", "x" * 32])
def test_tenant_ids_are_short_plain_words(tenant_id: str) -> None:
    assert Tenant(id=tenant_id, created_ms=0).id == tenant_id


@pytest.mark.parametrize("tenant_id", ["", "-a", "A", "a_b", "a:b", "x" * 33, "a\n", "../a"])
def test_other_tenant_ids_are_refused(tenant_id: str) -> None:
    with pytest.raises(ValidationError):
        Tenant(id=tenant_id, created_ms=0)


def test_absent_limits_have_no_field_and_come_back_absent() -> None:
    tenant = Tenant(id="a", created_ms=7, limits=TenantLimits(weight=2.5, max_running=3))
    fields = {str(name): str(value) for name, value in tenant.to_hash().items()}
    assert "max_queued" not in fields
    assert fields["weight"] == "2.5"
    assert Tenant.from_hash("a", fields) == tenant


def test_a_request_gets_no_higher_priority_than_its_tenant_may_have() -> None:
    limits = TenantLimits(top_priority="normal")
    assert [limits.capped("high"), limits.capped("normal"), limits.capped("low")] == ["normal", "normal", "low"]
    assert TenantLimits().capped("high") == "high"
