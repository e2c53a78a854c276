from __future__ import annotations

import socket

import pytest

from workers.webhook.public_address import AddressRefused, guarded_socket, is_public

NOT_PUBLIC = {
    "this host": ["0.0.0.0", "::", "0.1.2.3"],
    "loopback": ["127.0.0.1", "127.255.255.254", "::1"],
    "private": ["10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "fc00::1", "fd12:3456::1"],
    "link-local": ["169.254.0.1", "fe80::1", "fe80::1%eth0"],
    "cloud metadata": ["169.254.169.254", "100.100.100.200", "fd00:ec2::254"],
    "carrier-grade NAT": ["100.64.0.1", "100.127.255.255"],
    "documentation and benchmarks": ["192.0.2.1", "198.51.100.1", "203.0.113.1", "198.18.0.1", "2001:db8::1"],
    "multicast": ["224.0.0.1", "239.255.255.250", "ff02::1", "ff0e::1"],
    "reserved": ["240.0.0.1", "255.255.255.255", "192.0.0.1", "100::1", "5f00::1", "4000::1"],
    "site-local, of old": ["fec0::1"],
    "IPv4 in IPv6, mapped": ["::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:a9fe:a9fe"],
    "IPv4 in IPv6, compatible": ["::127.0.0.1", "::8.8.8.8"],
    "IPv4 in IPv6, NAT64": ["64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::808:808"],
    "IPv4 in IPv6, 6to4 and Teredo": ["2002:7f00:1::1", "2002:a00:1::1", "2001::1"],
    "no address": ["", "localhost", "127.1", "0x7f.0.0.1", "2130706433", "017700000001", "127.0.0.1 "],
}
PUBLIC = ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1"]


@pytest.mark.parametrize("address", [address for addresses in NOT_PUBLIC.values() for address in addresses])
def test_address_that_is_not_public_is_refused(address: str):
    assert not is_public(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_public_address_is_permitted(address: str):
    assert is_public(address)


def test_no_socket_is_made_for_a_refused_address():
    with pytest.raises(AddressRefused):
        guarded_socket(is_public)((socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", 80)))


def test_socket_is_made_for_a_permitted_address():
    with guarded_socket(is_public)((socket.AF_INET, socket.SOCK_STREAM, 0, "", ("8.8.8.8", 80))) as made:
        assert made.family == socket.AF_INET
