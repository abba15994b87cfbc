"""Who is calling, and may they: API keys, calls from this machine, calls by web pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from aiohttp import web
from yarl import URL

from modelium.addresses import is_loopback
from modelium.gateway.context import DESK, GatewayContext
from modelium.gateway.errors import ApiError

LONGEST_NAME = 128
ANY_PRIORITY = 100
"""Priorities are from -100 to 100."""
FORWARDED = ("Forwarded", "X-Forwarded-For", "X-Real-Ip")
"""What proxies add: the call may come from anywhere, though its connection is from here."""
SAFE = ("GET", "HEAD", "OPTIONS")


@dataclass(frozen=True, slots=True)
class Caller:
    """Who is calling."""

    organization: str
    scopes: Sequence[str]
    speaks_for_others: bool = True
    """Requests may name an organization of their own."""

    @property
    def top_priority(self) -> int:
        """Ordinary keys may step back in the queue, not forward."""
        return ANY_PRIORITY if self.speaks_for_others else 0

    def acting_for(self, named: str) -> str:
        """The organization that counts, where a request names one. Raises ApiError (400)."""
        if named and self.speaks_for_others:
            return named_well("organization", named)
        return self.organization


CALLER = web.RequestKey("caller", Caller)


def identify(desk: GatewayContext, headers: Mapping[str, str]) -> Caller:
    """Who is calling; raises ApiError (401) if keys are needed and there is none that is known."""
    if desk.keys is None:
        here = not _why_not_here(desk, headers)
        caller = Caller("", ("user", "admin") if here else ("user",))
    else:
        given = headers.get("Authorization", "")
        secret = given[7:] if given[:7].lower() == "bearer " else headers.get("X-Api-Key", "")
        key = desk.keys.find(secret.strip()) if secret else None
        if key is None:
            needed = "an API key is needed: Authorization: Bearer mk-..."
            why = "unknown API key" if secret else needed
            raise ApiError(401, why, code="invalid_api_key")
        # A key that may do all may also speak for others: a gateway in front of this one does.
        others = "admin" in key.scopes or not key.organization
        caller = Caller(key.organization, key.scopes, others)
    named = headers.get("X-Organization", "")
    if not named:
        return caller
    return Caller(caller.acting_for(named), caller.scopes, caller.speaks_for_others)


def authorize(http: web.Request, scope: str) -> None:
    """Let the caller in, or raise ApiError: 401 without a known key, 403 without the scope."""
    if http.method not in SAFE and not _origin_may(http):
        origin = http.headers["Origin"]
        why = f"pages from {origin!r} may not call; gateway.allowed_origins names those that may"
        raise ApiError(403, why, code="origin_not_allowed")
    http[CALLER] = permit(http.app[DESK], http.headers, scope)


def permit(desk: GatewayContext, headers: Mapping[str, str], scope: str) -> Caller:
    """Who is calling, if they have the scope; raises ApiError (401, 403)."""
    caller = identify(desk, headers)
    if scope not in caller.scopes:
        why = f"this call needs an API key with the scope {scope}"
        if desk.keys is None:
            why += f": {_why_not_here(desk, headers)}"
        raise ApiError(403, why, code="insufficient_permissions")
    return caller


def named_well(what: str, name: str) -> str:
    """A name that goes into books and labels. Raises ApiError (400)."""
    if len(name) > LONGEST_NAME or not name.isprintable():
        why = f"{what} is {name!r:.60}, expected at most {LONGEST_NAME} printable characters"
        raise ApiError(400, why, param=what)
    return name


def _origin_may(http: web.Request) -> bool:
    """Not a web page, or one of our own or an allowed one: a page that somebody visits must not
    act on a gateway that trusts this machine."""
    origin, allowed = http.headers.get("Origin"), http.app[DESK].settings.allowed_origins
    if origin is None or origin in allowed or "*" in allowed:
        return True
    return origin.partition("://")[2] == http.headers.get("Host", "")


def _why_not_here(desk: GatewayContext, headers: Mapping[str, str]) -> str:
    """Why a call without a key does not count as one from this machine; "" if it does.

    Behind a proxy on this machine, or when a page has had a name of its own point here (DNS
    rebinding), the connection alone proves nothing.
    """
    if not desk.settings.open_admin:
        return "none can be asked for; set gateway.keys, or bind to 127.0.0.1"
    if any(name in headers for name in FORWARDED):
        return "it was forwarded by a proxy; set gateway.keys"
    host = headers.get("Host", "")
    if not _names_loopback(host):
        return f"it was addressed to {host!r:.80}; call 127.0.0.1, or set gateway.keys"
    return ""


def _names_loopback(host: str) -> bool:
    """Whether a Host header names this machine by its loopback address."""
    try:
        return is_loopback(URL(f"http://{host}").host or "")
    except ValueError:
        return False
