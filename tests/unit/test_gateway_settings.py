"""What the gateway reads from its environment, and how it refuses."""

from __future__ import annotations

import pytest

from service.net.egress import EgressRules
from service.settings.gateway import AuthSettings, GatewaySettings, HttpSettings, is_loopback
from service.settings.reading import SettingsError


def test_without_variables_it_listens_on_loopback_and_asks_for_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AUTH", "DARKROOM_AUTH", "PORT", "DARKROOM_PORT", "DARKROOM_HOST"):
        monkeypatch.delenv(name, raising=False)
    settings = GatewaySettings.from_environment()
    assert (settings.http.host, settings.http.port, settings.auth.auth) == ("127.0.0.1", 8000, "keys")


@pytest.mark.parametrize(
    ("variable", "value", "named"),
    [
        ("PORT", "eighty", "DARKROOM_PORT or PORT: "),
        ("DARKROOM_PORT", "65536", "DARKROOM_PORT or PORT: "),
        ("AUTH", "basic", "DARKROOM_AUTH or AUTH: "),
        ("DARKROOM_WAIT_CAP_S", "soon", "DARKROOM_WAIT_CAP_S: "),
        ("DARKROOM_BODY_LIMIT_BYTES", "1", "DARKROOM_BODY_LIMIT_BYTES: "),
        ("DARKROOM_LOG", "xml", "DARKROOM_LOG: "),
        ("DARKROOM_S3_LINK_TTL_S", "999999", "DARKROOM_S3_LINK_TTL_S: "),
        ("DARKROOM_REDIS_URL", "http://:pass@example", "DARKROOM_REDIS_URL: must look like redis://"),
        ("DARKROOM_REDIS_URL", "redis://:pass@example:port/0", "DARKROOM_REDIS_URL: must look like redis://"),
        ("DARKROOM_REDIS_URL", "redis://:pass@[::1/0", "DARKROOM_REDIS_URL: must look like redis://"),
        ("DARKROOM_REDIS_URL", "redis://example/first", "DARKROOM_REDIS_URL: must look like redis://"),
        ("DARKROOM_REDIS_URL", "unix://run.sock", "DARKROOM_REDIS_URL: must look like redis://"),
        ("DARKROOM_S3_ENDPOINT", "s3.internal:8333", "DARKROOM_S3_ENDPOINT: must look like https://"),
        ("DARKROOM_S3_PUBLIC_ENDPOINT", "https://:8333", "DARKROOM_S3_PUBLIC_ENDPOINT: must look like https://"),
        ("DARKROOM_TRUSTED_PROXIES", "*", "DARKROOM_TRUSTED_PROXIES: must be addresses or networks"),
        ("DARKROOM_TRUSTED_PROXIES", "10.0.0.7, proxy.internal", "DARKROOM_TRUSTED_PROXIES: must be addresses"),
        ("DARKROOM_TRUSTED_PROXIES", "10.0.0.7/8", "DARKROOM_TRUSTED_PROXIES: must be addresses or networks"),
        ("DARKROOM_UPLOAD_ORIGINS", "*", "DARKROOM_UPLOAD_ORIGINS: must look like https://app.example"),
        ("DARKROOM_UPLOAD_ORIGINS", "https://a.example/x", "DARKROOM_UPLOAD_ORIGINS: must look like"),
        ("DARKROOM_UPLOAD_ORIGINS", "https://a.example,,", "DARKROOM_UPLOAD_ORIGINS: must look like"),
        ("DARKROOM_UPLOAD_TTL_S", "10", "DARKROOM_UPLOAD_TTL_S: "),
        ("DARKROOM_EGRESS_NETWORKS", "10.0.0.1/8", "DARKROOM_EGRESS_NETWORKS: must be networks such as"),
        ("DARKROOM_EGRESS_NETWORKS", "inside", "DARKROOM_EGRESS_NETWORKS: must be networks such as"),
        ("DARKROOM_EGRESS_PORTS", "8443;9443", "DARKROOM_EGRESS_PORTS: must be ports from 1 to 65535"),
        ("DARKROOM_EGRESS_PORTS", "65536", "DARKROOM_EGRESS_PORTS: must be ports from 1 to 65535"),
        ("DARKROOM_EGRESS_PROXY", "outer:3128", "DARKROOM_EGRESS_PROXY: must look like http://"),
        ("DARKROOM_EGRESS_PROXY", "http://[::1", "DARKROOM_EGRESS_PROXY: must look like http://"),
        ("DARKROOM_EGRESS_CA_FILE", "/nowhere.pem", "DARKROOM_EGRESS_CA_FILE: must be a file of certificates"),
        ("DARKROOM_EGRESS_CA_FILE", __file__, "DARKROOM_EGRESS_CA_FILE: must be a file of certificates"),
        ("DARKROOM_FETCH_TIMEOUT_S", "soon", "DARKROOM_FETCH_TIMEOUT_S: "),
        ("DARKROOM_FETCH_BUDGET_BYTES", "1048577", "DARKROOM_FETCH_BUDGET_BYTES: must not be less than"),
        ("DARKROOM_RETAIN_S", "99999999999", "DARKROOM_RETAIN_S: must not be more than DARKROOM_RETAIN_MAX_S"),
    ],
)
def test_a_malformed_value_is_one_line_that_names_the_variable(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, named: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError) as caught:
        GatewaySettings.from_environment()
    assert str(caught.value).startswith(named)
    assert "\n" not in str(caught.value)
    assert value not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    ["redis://example", "redis://:p%40ss@10.0.0.1:6380/15", "rediss://u:p@example:6379", "redis://[::1]:6379/0",
     "unix:///run/valkey.sock?db=2", "redis://example:6379/?protocol=3"],
)  # fmt: skip
def test_addresses_that_redis_py_takes_are_taken(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("DARKROOM_REDIS_URL", url)
    assert GatewaySettings.from_environment().redis.url.get_secret_value() == url


def test_networks_and_ports_are_lists_with_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DARKROOM_EGRESS_NETWORKS", "10.1.0.0/16, fd00:1::/48,192.0.2.7")
    monkeypatch.setenv("DARKROOM_EGRESS_PORTS", "8443, 9443")
    rules = EgressRules.of(GatewaySettings.from_environment().egress)
    assert [str(each) for each in rules.networks] == ["10.1.0.0/16", "fd00:1::/48", "192.0.2.7/32"]
    assert (rules.ports, rules.http) == ((80, 443, 8443, 9443), False)


def test_auth_none_is_refused_where_others_could_reach_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTH", "none")
    monkeypatch.setenv("DARKROOM_HOST", "0.0.0.0")
    with pytest.raises(SettingsError, match="AUTH: `none` is accepted on a loopback address only"):
        GatewaySettings.from_environment()
    monkeypatch.setenv("DARKROOM_HOST", "::1")
    assert GatewaySettings.from_environment().auth.auth == "none"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.10", "::1", "[::1]", "localhost", "LOCALHOST"])
def test_loopback_hosts_are_known(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "localhost.example", "127.0.0.1.example", ""])
def test_other_hosts_are_not_loopback(host: str) -> None:
    assert not is_loopback(host)


def test_trusted_proxies_are_handed_on_without_spaces() -> None:
    assert (
        HttpSettings(trusted_proxies=" 10.0.0.7, 172.30.84.0/24 ,::1").trusted_proxies == "10.0.0.7,172.30.84.0/24,::1"
    )
    assert HttpSettings().trusted_proxies == ""


def test_groups_take_their_values_by_name_in_code() -> None:
    assert HttpSettings(port=0, host="::1").port == 0
    assert AuthSettings(auth="none").auth == "none"


def test_origins_are_told_as_browsers_send_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DARKROOM_UPLOAD_ORIGINS", "https://App.example, http://127.0.0.1:3000")
    assert GatewaySettings.from_environment().uploads.origin_list == ("https://app.example", "http://127.0.0.1:3000")
    monkeypatch.setenv("DARKROOM_UPLOAD_ORIGINS", "")
    assert GatewaySettings.from_environment().uploads.origin_list == ()
