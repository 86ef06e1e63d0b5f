"""The rule on addresses: plain http stays on this machine, certificates are verified, old TLS is refused."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from tls_sample import Authority, Served, serve, versions

from agentlightning.errors import ConfigurationError, InsecureEndpoint
from agentlightning.remote.rule import checked_url
from agentlightning.remote.session import open_session
from agentlightning.remote.tls import tls_context
from agentlightning.store import LightningStore
from agentlightning.testing import wait_until
from agentlightning.tracer import AgentOpsTracer


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def certificate(authority: Authority) -> Path:
    return authority.certify("127.0.0.1", "localhost")


@pytest.fixture
def server(certificate: Path) -> Iterator[Served]:
    with serve(certificate) as served:
        yield served


@pytest.fixture(autouse=True)
def _no_authorities(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AGL_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)


def get(url: str, *, verify: bool = True) -> int:
    with open_session(url) as session:
        return session.get(f"{url}/x", timeout=120, verify=verify).status_code


# ---------------------------------------------------------------------- which address


@pytest.mark.parametrize(
    "url",
    [
        "https://example.org",
        "https://10.0.0.1:4318/base?x=1",
        "HTTPS://EXAMPLE.ORG",
        "http://localhost:1",
        "http://LOCALHOST",
        "http://127.0.0.1:4318/v1",
        "http://127.8.9.10",
        "http://[::1]:80",
    ],
)
def test_https_anywhere_and_plain_http_to_this_machine_are_allowed(url: str) -> None:
    assert checked_url(url) == url


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org",
        "http://10.0.0.1:4318",
        "http://0.0.0.0:1",
        "http://192.168.0.2",
        "http://[fe80::1]",
        "http://localhost.example.org",
        "http://127.0.0.1.example.org",
        "http://2130706433",
        "http://127.0.0.1@example.org",
        "http://127.0.0.1:80@example.org:90",
        "HTTP://Example.org",
    ],
)
def test_plain_http_to_another_machine_has_to_be_allowed(url: str) -> None:
    with pytest.raises(InsecureEndpoint, match=r"allow_insecure=True"):
        checked_url(url)
    with pytest.raises(InsecureEndpoint):
        open_session(url)
    assert checked_url(url, allow_insecure=True) == url
    open_session(url, allow_insecure=True).close()


@pytest.mark.parametrize(
    "url",
    [
        "",
        "example.org",
        "ftp://127.0.0.1",
        "file:///etc/hosts",
        "http://",
        "http://:80",
        "http://127.0.0.1:port",
        "http://127.0.0.1:99999",
        "http://[::1",
        "http://example.org\\@127.0.0.1",
        "http://127.0.0.1\r\nHost: x",
        " http://127.0.0.1",
    ],
)
def test_what_is_no_address_is_refused_whatever_is_allowed(url: str) -> None:
    for allow_insecure in (False, True):
        with pytest.raises(ConfigurationError, match="no address of a server"):
            checked_url(url, allow_insecure=allow_insecure)


@pytest.mark.parametrize("url", ["http://me:secret@example.org", "ftp://me:secret@h", "ftp://h/?key=secret"])
def test_a_refusal_does_not_tell_what_is_secret(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        checked_url(url)
    assert "secret" not in str(caught.value)


def test_a_redirect_to_a_place_that_the_rule_forbids_is_not_followed() -> None:
    with serve() as served, open_session(served.url) as session:
        served.redirect = "http://192.0.2.1/elsewhere"
        with pytest.raises(InsecureEndpoint, match=r"http://192.0.2.1 is another machine"):
            session.get(served.url, timeout=120)
        served.redirect = "https://127.0.0.1:9/"
        with pytest.raises(requests.exceptions.InvalidSchema):
            session.get(served.url, timeout=120)
        assert served.requests == ["GET /"] * 2


def test_no_proxy_stands_between_this_machine_and_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    with serve() as proxy, serve() as served:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.setenv("http_proxy", proxy.url)
        assert get(served.url) == 200
        assert requests.get(f"{served.url}/theirs", timeout=120).status_code == 200
        assert served.requests == ["GET /x"]
        assert proxy.requests == [f"GET {served.url}/theirs"]


# ---------------------------------------------------------------------- who answers


@pytest.mark.filterwarnings("ignore:Unverified HTTPS request")
@pytest.mark.parametrize("verify", [True, False])
def test_a_certificate_of_an_unknown_authority_is_refused(server: Served, verify: bool) -> None:
    with pytest.raises(requests.exceptions.SSLError, match="CERTIFICATE_VERIFY_FAILED"):
        get(server.url, verify=verify)
    assert server.requests == []
    assert requests.get(server.url, verify=False, timeout=120).status_code == 200  # it does answer


@pytest.mark.parametrize("name", ["AGL_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"])
def test_the_environment_names_authorities_of_ones_own(
    server: Served, authority: Authority, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, str(authority.bundle))
    assert get(server.url) == 200
    assert get(server.url.replace("127.0.0.1", "localhost")) == 200
    assert server.requests == ["GET /x"] * 2


def test_our_variable_comes_first_and_others_are_not_trusted_beside_it(
    server: Served, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority.bundle))
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.bundle))
    monkeypatch.setenv("AGL_CA_BUNDLE", str(Authority(tmp_path).bundle))
    with pytest.raises(requests.exceptions.SSLError, match="CERTIFICATE_VERIFY_FAILED"):
        get(server.url)
    assert tls_context().cert_store_stats()["x509_ca"] == 1


def test_authorities_of_ones_own_stay_the_only_ones_when_a_session_is_used(
    server: Served, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGL_CA_BUNDLE", str(authority.bundle))
    with open_session(server.url) as session:
        assert session.get(server.url, timeout=120).status_code == 200
        adapter: Any = session.get_adapter(server.url)
        assert adapter._context.cert_store_stats()["x509_ca"] == 1
        assert adapter._context.minimum_version == ssl.TLSVersion.TLSv1_2


def test_a_certificate_for_another_name_is_refused(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGL_CA_BUNDLE", str(authority.bundle))
    with serve(authority.certify("other.example")) as served:
        with pytest.raises(requests.exceptions.SSLError, match=r"not valid for '127.0.0.1'"):
            get(served.url)
        assert served.requests == []


@pytest.mark.parametrize("content", [None, b"", b"no certificate"])
def test_authorities_that_cannot_be_read_are_named(
    content: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bundle.pem"
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setenv("AGL_CA_BUNDLE", str(path))
    with pytest.raises(ConfigurationError, match=r"^AGL_CA_BUNDLE='.*bundle.pem' has no certificates"):
        open_session("https://127.0.0.1:9")


# ---------------------------------------------------------------------- which TLS


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
def test_a_server_that_speaks_only_old_tls_is_refused(
    version: ssl.TLSVersion, certificate: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGL_CA_BUNDLE", str(authority.bundle))
    with serve(certificate, only=version) as served:
        lenient = versions(ssl.create_default_context(cafile=authority.bundle), version)
        with (
            socket.create_connection(("127.0.0.1", served.port), 30) as plain,
            lenient.wrap_socket(plain, server_hostname="127.0.0.1") as old,
        ):
            assert old.version() == {ssl.TLSVersion.TLSv1: "TLSv1"}.get(version, "TLSv1.1")
        with pytest.raises(requests.exceptions.SSLError, match=r"(?i)protocol.?version"):
            get(served.url)
        assert served.requests == []


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_server_that_speaks_new_tls_is_talked_to(
    version: ssl.TLSVersion, certificate: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGL_CA_BUNDLE", str(authority.bundle))
    with serve(certificate, only=version) as served:
        assert get(served.url) == 200


# ---------------------------------------------------------------------- the tracer's server


def test_a_tracer_takes_no_server_that_the_rule_forbids() -> None:
    with pytest.raises(InsecureEndpoint, match=r"http://10.0.0.5:8 is another machine"):
        AgentOpsTracer(server="http://10.0.0.5:8")
    with pytest.raises(ConfigurationError, match="no address of a server"):
        AgentOpsTracer(server="10.0.0.5:8")
    AgentOpsTracer(server="http://10.0.0.5:8", allow_insecure=True)
    AgentOpsTracer(server="https://10.0.0.5:8")


async def record(store: LightningStore, server: str) -> list[str]:
    with AgentOpsTracer(server=server).lifespan(store) as tracer:
        async with tracer.trace_context() as trace:
            with trace.start_as_current_span("work"):
                pass
    return sorted(span.name for span in await store.query_spans(trace.rollout_id))


@pytest.mark.asyncio
async def test_a_copy_of_the_spans_goes_to_a_server_with_tls_that_is_known(
    server: Served, authority: Authority, store: LightningStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGL_CA_BUNDLE", str(authority.bundle))
    assert await record(store, f"{server.url}/") == ["rollout", "work"]
    wait_until(lambda: "POST /v1/traces" in server.requests)
    assert b"work" in b"".join(server.bodies)


@pytest.mark.asyncio
async def test_a_server_that_nobody_vouches_for_gets_nothing_and_the_store_gets_all(
    server: Served, store: LightningStore
) -> None:
    assert await record(store, server.url) == ["rollout", "work"]
    assert server.requests == []
