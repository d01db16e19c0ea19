"""Which addresses are public: our table, not Python's."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from service.net.addresses import SPECIAL_V4, SPECIAL_V6, embedded, is_allowed, is_public

SPECIAL = [
    "0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "100.100.100.200", "127.0.0.1", "127.255.255.254", "168.63.129.16",
    "169.254.169.254", "172.16.0.1", "172.31.255.255", "192.0.0.8", "192.0.0.192", "192.0.2.1", "192.31.196.1",
    "192.52.193.1", "192.88.99.1", "192.168.1.1", "192.175.48.1", "198.18.0.1", "198.19.255.255", "198.51.100.1",
    "203.0.113.1", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255",
    "::", "::1", "::127.0.0.1", "::8.8.8.8", "::ffff:127.0.0.1", "::ffff:8.8.8.8", "::ffff:0:127.0.0.1",
    "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b::10.0.0.1", "64:ff9b::a83f:8110", "64:ff9b:1::1",
    "64:ff9b:1::8.8.8.8", "100::1", "100:0:0:1::1", "2001::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2", "2001:2::1",
    "2001:10::1", "2001:20::1", "2001:30::1", "2001:db8::1", "2002:7f00:1::", "2002:808:808::1", "2620:4f:8000::1",
    "3ffe::1", "3fff::1", "3fff:fff:ffff::1", "5f00::1", "fc00::1", "fd00:ec2::254", "fd20:ce::254", "fe80::1",
    "fec0::1", "ff02::1", "4000::1", "1::1", "2a00:1450::5efe:7f00:1", "2a00:1450::200:5efe:10.0.0.1",
]  # fmt: skip

PUBLIC = [
    "1.1.1.1", "8.8.8.8", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0", "126.255.255.255", "128.0.0.0",
    "168.63.129.15", "168.63.129.17", "169.253.255.255", "172.15.255.255", "172.32.0.0", "192.0.1.0", "192.167.255.255",
    "198.17.255.255", "198.20.0.0", "223.255.255.255", "2001:4860:4860::8888", "2606:4700::1111", "2a00:1450::1",
    "2003::1", "2001:200::1", "64:ff9b::8.8.8.8", "2a00:1450::5efe:808:808", "3fff:1000::1",
]  # fmt: skip


@pytest.mark.parametrize("text", SPECIAL)
def test_special_addresses_are_not_public(text: str) -> None:
    assert not is_public(ip_address(text))


@pytest.mark.parametrize("text", PUBLIC)
def test_neighbours_of_special_blocks_are_public(text: str) -> None:
    assert is_public(ip_address(text))


@pytest.mark.parametrize("block", [*SPECIAL_V4, *SPECIAL_V6], ids=str)
def test_a_block_is_special_from_its_first_address_to_its_last(block) -> None:
    assert not is_public(block[0])
    assert not is_public(block[-1])


@given(st.ip_addresses())
@example(ip_address("64:ff9b::7f00:1"))
def test_what_python_calls_private_is_never_public(address) -> None:
    # Python errs in the other direction alone: everything that it knows to be special is in our table too.
    if not address.is_global and not (address.version == 6 and embedded(address)):
        assert not is_public(address)


@given(st.ip_addresses(v=4))
def test_nat64_is_as_public_as_what_it_leads_to(address) -> None:
    assert is_public(ip_address(f"64:ff9b::{address}")) == is_public(address)
    assert embedded(ip_address(f"64:ff9b::{address}")) == [address]


def test_addresses_inside_others_are_found() -> None:
    inside = {
        "::ffff:10.0.0.1": ["10.0.0.1"],
        "::10.0.0.1": ["10.0.0.1"],
        "2002:a00:1::": ["10.0.0.1"],
        "2001:0:4136:e378:8000:63bf:3fff:fdd2": ["65.54.227.120", "192.0.2.45"],
        "2a00:1450::5efe:a00:1": ["10.0.0.1"],
        "2a00:1450::1": [],
    }
    for text, expected in inside.items():
        assert [str(each) for each in embedded(ip_address(text))] == expected, text


def test_networks_that_the_operator_names_are_allowed_and_nothing_beside_them() -> None:
    networks = (ip_network("10.1.0.0/16"), ip_network("fd00:1::/48"))
    for text in ("10.1.2.3", "fd00:1::7", "8.8.8.8"):
        assert is_allowed(ip_address(text), networks), text
    # Written into an IPv6 address, it leads to somebody else's 10.1.2.3.
    for text in ("10.2.0.1", "fd00:2::7", "127.0.0.1", "64:ff9b::10.1.2.3", "::ffff:10.1.2.3", "2002:a01:203::"):
        assert not is_allowed(ip_address(text), networks), text
