"""Who may call what: keys, scopes, calls from this machine, web pages, TLS, rate limits."""

from __future__ import annotations

import asyncio
import json
import ssl
import stat
import subprocess
from pathlib import Path

import openai
import pytest
from tritonclient.grpc.aio import InferenceServerClient

from modelium.errors import ConfigError
from modelium.gateway.access import limits as limits_module
from modelium.gateway.access.keys import Keys
from modelium.gateway.access.limits import Limits, Rate
from modelium.gateway.address import Address, read_certificate
from modelium.gateway.errors import ApiError
from tests.gateway.site import Site, visit

BODY = {"model": "a", "prompt": "x", "max_tokens": 4}
OPERATORS = ["/status", "/models", "/models/a", "/decisions", "/events", "/usage"]


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


def test_with_keys_nobody_passes_without_one(tmp_path: Path) -> None:
    keys = Keys(tmp_path / "keys.json")
    user = keys.make("u", "acme", ("user",))
    admin = keys.make("root", "", ("user", "admin"))

    async def act(here: Site) -> None:
        for path in ["/v1/models", "/v2/models/a", *OPERATORS]:
            status, told = await here.get(path)
            assert status == 401, path
            status, told = await here.get(path, headers=bearer("mk-wrong"))
            assert status == 401, path
        assert told["error"]["code"] == "invalid_api_key"
        for path in OPERATORS[:3]:
            assert (await here.get(path, headers=bearer(user)))[0] == 403
            assert (await here.get(path, headers=bearer(admin)))[0] == 200
        assert (await here.get("/v1/models", headers={"X-Api-Key": user}))[0] == 200
        assert (await here.post("/models/a/load", headers=bearer(user)))[0] == 403
        for path in ("/health", "/ready", "/v2/health/live", "/openapi.json"):
            assert (await here.get(path))[0] == 200
        with pytest.raises(openai.AuthenticationError, match="unknown API key"):
            await here.openai().completions.create(model="a", prompt="x")

    visit(tmp_path, act, keys=keys)


def test_a_key_decides_on_organization_and_priority(tmp_path: Path) -> None:
    keys = Keys(tmp_path / "keys.json")
    user = keys.make("u", "acme", ("user",))
    admin = keys.make("root", "", ("user", "admin"))

    async def act(here: Site) -> None:
        others = {"X-Organization": "victim", "X-Priority": "50"}
        for secret in (user, admin):
            headers = {**bearer(secret), **others}
            assert (await here.post("/v1/completions", BODY, headers=headers))[0] == 200
        body = {**BODY, "organizationId": "victim"}
        assert (await here.post("/predict/a", body, headers=bearer(user)))[0] == 200
        assert [row[0] for row in await here.journal()] == ["acme", "victim", "acme"]

    visit(tmp_path, act, keys=keys)


def test_keys_can_be_revoked_while_the_server_runs(tmp_path: Path) -> None:
    keys = Keys(tmp_path / "keys.json")
    secret = keys.make("u", "acme", ("user",))

    async def act(here: Site) -> None:
        assert (await here.get("/v1/models", headers=bearer(secret)))[0] == 200
        Keys(keys.path).revoke("u")
        assert (await here.get("/v1/models", headers=bearer(secret)))[0] == 401
        keys.path.write_text("nonsense")
        status, told = await here.get("/v1/models", headers=bearer(secret))
        assert status == 503
        assert "not a file of API keys" in told["error"]["message"]
        keys.path.unlink()
        assert (await here.get("/v1/models", headers=bearer(secret)))[0] == 401

    visit(tmp_path, act, keys=keys)


def test_a_file_of_keys_holds_no_secret_and_is_private(tmp_path: Path) -> None:
    keys = Keys(tmp_path / "sub" / "keys.json")
    secret = keys.make("u", "acme", ("user",))
    assert secret.startswith("mk-")
    assert secret not in keys.path.read_text()
    assert stat.S_IMODE(keys.path.stat().st_mode) == 0o600
    assert [key.name for key in Keys(keys.path).all()] == ["u"]
    found = keys.find(secret)
    assert found is not None
    assert found.organization == "acme"
    assert keys.find(secret[:-1]) is None
    with pytest.raises(ConfigError, match="a key called 'u' already"):
        keys.make("u", "", ("user",))
    with pytest.raises(ConfigError, match="no key called 'v'; there are u"):
        keys.revoke("v")
    assert list((tmp_path / "sub").iterdir()) == [keys.path]


@pytest.mark.parametrize(
    ("headers", "why"),
    [
        ({"Host": "evil.example:8080"}, "addressed to"),
        ({"Host": "modelium.internal"}, "addressed to"),
        ({"X-Forwarded-For": "203.0.113.9"}, "forwarded by a proxy"),
        ({"Forwarded": "for=203.0.113.9"}, "forwarded by a proxy"),
    ],
)
def test_without_keys_only_calls_from_here_operate(
    tmp_path: Path, headers: dict[str, str], why: str
) -> None:
    async def act(here: Site) -> None:
        for path in OPERATORS:
            status, told = await here.get(path, headers=headers)
            assert status == 403
            assert why in told["error"]["message"]
        assert (await here.post("/models/a/load", headers=headers))[0] == 403
        assert (await here.get("/v1/models", headers=headers))[0] == 200
        assert (await here.get("/status"))[0] == 200
        port = here.url.rpartition(":")[2]
        for host in ("localhost", f"localhost:{port}", f"[::1]:{port}", "127.0.0.1"):
            assert (await here.get("/status", headers={"Host": host}))[0] == 200

    visit(tmp_path, act)


def test_bound_to_other_addresses_nobody_operates_without_a_key(tmp_path: Path) -> None:
    async def act(here: Site) -> None:
        status, told = await here.get("/status")
        assert status == 403
        assert "set gateway.keys, or bind to 127.0.0.1" in told["error"]["message"]

    visit(tmp_path, act, gateway={"open_admin": False})


def test_pages_of_others_may_not_call(tmp_path: Path) -> None:
    async def act(here: Site) -> None:
        evil, good = {"Origin": "https://evil.example"}, {"Origin": "https://app.example"}
        assert (await here.post("/models/a/load", headers=evil))[0] == 403
        status, told = await here.post("/v1/completions", BODY, headers=evil)
        assert (status, told["error"]["code"]) == (403, "origin_not_allowed")
        assert (await here.post("/v1/completions", BODY, headers={"Origin": here.url}))[0] == 200
        for stream in (False, True):
            body = {**BODY, "stream": stream}
            url = f"{here.url}/v1/completions"
            async with here.http.post(url, json=body, headers=good) as answer:
                assert answer.status == 200
                assert answer.headers["Access-Control-Allow-Origin"] == good["Origin"]
        for origin, status in ((evil, 403), (good, 204)):
            asked = {**origin, "Access-Control-Request-Method": "POST"}
            async with here.http.options(url, headers=asked) as answer:
                assert answer.status == status
                allowed = answer.headers.get("Access-Control-Allow-Origin")
                assert allowed == (good["Origin"] if origin is good else None)

    visit(tmp_path, act, gateway={"allowed_origins": ("https://app.example",)})


def test_requests_a_minute_are_limited_per_organization(tmp_path: Path) -> None:
    async def act(here: Site) -> None:
        client = here.openai(default_headers={"X-Organization": "acme"})
        for _ in range(2):
            await client.completions.create(model="a", prompt="x", max_tokens=1)
        with pytest.raises(openai.RateLimitError, match="2 requests per minute") as error:
            await client.completions.create(model="a", prompt="x", max_tokens=1)
        assert error.value.code == "rate_limit_exceeded"
        assert int(error.value.response.headers["Retry-After"]) == 30
        body = {**BODY, "organizationId": "acme"}
        assert (await here.post("/predict/a", body))[0] == 429
        assert (await here.post("/v1/completions", BODY))[0] == 200
        assert len(await here.journal()) == 3

    visit(tmp_path, act, rate=Rate(requests_per_minute=2), clock=lambda: 0.0)


def test_tokens_a_minute_are_limited_however_they_were_asked_for(tmp_path: Path) -> None:
    async def act(here: Site) -> None:
        for name, body in {
            "whole": {**BODY, "max_tokens": 40},
            "streamed": {**BODY, "max_tokens": 40, "stream": True},
        }.items():
            headers = {"X-Organization": name}
            for status in (200, 200, 429):
                url = f"{here.url}/v1/completions"
                async with here.http.post(url, json=body, headers=headers) as answer:
                    await answer.read()
                    assert answer.status == status

    visit(tmp_path, act, rate=Rate(tokens_per_minute=50), clock=lambda: 0.0)


def test_buckets_fill_with_time_and_full_ones_are_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now_s = 0.0
    limits = Limits(lambda: now_s, Rate(requests_per_minute=60), {"vip": Rate()})
    for _ in range(60):
        limits.admit("x")
    with pytest.raises(ApiError) as error:
        limits.admit("x")
    assert error.value.retry_after_s == pytest.approx(1.0)
    for _ in range(1000):
        limits.admit("vip")
    now_s = 1.0
    limits.admit("x")
    with pytest.raises(ApiError):
        limits.admit("x")
    monkeypatch.setattr(limits_module, "MOST_BUCKETS", 10)
    for number in range(100):
        limits.admit(f"org{number}")
        now_s += 2.0
        assert len(limits._buckets) <= 10


def test_of_many_organizations_those_that_used_least_are_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits_module, "MOST_BUCKETS", 10)
    limits = Limits(lambda: 0.0, Rate(requests_per_minute=3))
    for name in ("x", "y"):
        for _ in range(3):
            limits.admit(name)
    for number in range(100):  # all at the same moment: no bucket is full again
        limits.admit(f"org{number}")
        assert len(limits._buckets) <= 10
    for name in ("x", "y"):
        with pytest.raises(ApiError):
            limits.admit(name)


def certificates(folder: Path) -> tuple[Path, Path, ssl.SSLContext]:
    """A new certificate, its key, and what trusts it."""
    certificate, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost",
         "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    return certificate, key, ssl.create_default_context(cafile=certificate)


def test_tls_by_files(tmp_path: Path) -> None:
    certificate, key, trusted = certificates(tmp_path)

    async def act(here: Site) -> None:
        assert here.url.startswith("https://127.0.0.1:")
        assert (await here.post("/v1/completions", BODY))[0] == 200
        assert (await here.get("/status"))[0] == 200
        trusting = InferenceServerClient(here.grpc, ssl=True, root_certificates=str(certificate))
        async with trusting as client:
            assert await client.is_server_live()

    address = Address(port=0, certificate=read_certificate(certificate, key), grpc_port=0)
    visit(tmp_path, act, address=address, tls=trusted)
    with pytest.raises(ConfigError, match="TLS cannot be set up from"):
        read_certificate(key, key)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True),
     ("0.0.0.0", False), ("::", False), ("10.0.0.1", False), ("gpu.example", False)],
)  # fmt: skip
def test_which_addresses_are_of_this_machine_alone(host: str, loopback: bool) -> None:
    assert Address(host).loopback is loopback


def test_odd_names_of_organizations_are_refused(tmp_path: Path) -> None:
    async def act(here: Site) -> None:
        for name in ("x" * 200, "caf\u0007e"):
            body = {"prompt": "x", "organizationId": name}
            status, told = await here.post("/predict/a", body)
            assert (status, told["error"]["param"]) == (400, "organization")
        # Bytes that are not UTF-8, as no careful client sends them.
        head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nX-Organization: \xff\r\n"
        text = json.dumps(BODY).encode()
        answer = await raw(here, head + b"Content-Length: %d\r\n\r\n%b" % (len(text), text))
        assert answer.startswith(b"HTTP/1.1 400")

    visit(tmp_path, act)


async def raw(here: Site, sent: bytes) -> bytes:
    port = int(here.url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(sent)
    answer = await reader.readline()
    writer.close()
    await writer.wait_closed()
    return answer


@pytest.mark.parametrize("name", ["", " a", "a\nb", "x" * 129])
def test_a_key_has_a_name_that_can_be_told_and_revoked(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="name"):
        Keys(tmp_path / "keys.json").make(name, "", ("user",))
    assert not (tmp_path / "keys.json").exists()


def test_keys_that_cannot_be_written_are_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="keys cannot be written"):
        Keys(tmp_path / "file" / "keys.json").make("a", "", ("user",))


def test_rates_that_are_changed_count_at_once() -> None:
    now_s = iter(range(1, 1000))
    limits = Limits(lambda: next(now_s) * 1e-9, Rate(requests_per_minute=1))
    limits.admit("x")  # the whole of a minute, though the clock has gone on
    with pytest.raises(ApiError):
        limits.admit("x")
    limits.change(Rate(requests_per_minute=3), {"vip": Rate()})
    for _ in range(2):  # one of three was used
        limits.admit("x")
    with pytest.raises(ApiError):
        limits.admit("x")
    for _ in range(9):
        limits.admit("vip")
