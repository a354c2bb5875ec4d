"""Who may call what: bearer tokens with scopes and rates, checked before a body is read.

    Access(workspace).guard(app, service.rejected)

Middleware, not a FastAPI dependency: FastAPI reads and parses the body before it asks one, so
that strangers could have us parse half a megabyte, and asking it took 90 us where this takes 10.
Paths that are in none of the tables below are refused as well, so a new route is shut at first.

Writes nothing; reads the tokens that `serving/tokens.py` stores, again within a second of a change.
A workspace that has had no token file since the server started is open to whoever reaches it, so
`serving/listening.py` lets such a server listen on loopback alone. Once a file was seen it is shut
for good: with the file gone, or its last token revoked, nobody is let in.

Answers 401 without a good token, 403 without the scope, 429 with `Retry-After` above the rate
(RFC 6750 section 3, RFC 6585 section 4). A rate holds for each serving process.
"""

import hmac
import os
import time
from collections.abc import Callable
from math import ceil
from typing import Any

import structlog
from fastapi import FastAPI
from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as RequestScope

from feature_repo.errors import InputError
from feature_repo.workspace import Workspace
from serving.listening import is_loopback, is_loopback_name
from serving.tokens import Scope, Token, read_tokens, token_sha256, tokens_path

OPEN_PATHS = frozenset({"/", "/healthz", "/readyz", "/metrics", "/openapi.json"})
"""Probes, scrapes and documents: nothing of any user."""
OPEN_PREFIX = "/page/"
"""The web page's files; what it shows comes from guarded routes."""
SCOPE_OF_PREFIX: tuple[tuple[str, Scope], ...] = (
    ("/v1/events", "write_events"),
    ("/v1/admin/", "administer"),
    ("", "rank"),
)
"""The first that fits holds."""

LOOK_S = 1.0
"""How often the token file is looked at: one `stat`, 2 us."""
MAX_SECRET = 512
"""Longer credentials are none of ours, and are not hashed."""
CHALLENGE = 'Bearer realm="crescendo"'

log = structlog.get_logger()


class Refused(Exception):
    """A request may not go on: the answer's status, text and header; what it is counted as."""

    def __init__(self, status: int, reason: str, header: dict[str, str], counted: str) -> None:
        super().__init__(reason)
        self.status, self.header, self.counted = status, header, counted


class Bucket:
    """A token bucket: `per_s` requests a second, and a second's worth (one at least) at once."""

    def __init__(self, per_s: float, now_s: float) -> None:
        self.per_s, self._most = per_s, max(per_s, 1.0)
        self._left, self._at_s = self._most, now_s

    def take(self, now_s: float) -> float:
        """0 if the request may go on, else the seconds until one may."""
        # left(now) = min(most, left(then) + per_s * (now - then))
        self._left = min(self._most, self._left + self.per_s * (now_s - self._at_s))
        self._at_s = now_s
        if self._left < 1.0:
            return (1.0 - self._left) / self.per_s
        self._left -= 1.0
        return 0.0


class Holder:
    """A stored token as requests are checked against it."""

    def __init__(self, token: Token, bucket: Bucket) -> None:
        self.name, self.scopes = token.name, frozenset(token.scopes)
        self.sha256 = bytes.fromhex(token.sha256)
        self.expires_s, self.bucket = token.expires_s, bucket


class Access:
    """The tokens of one workspace in one serving process. For one event loop.

    `administration`: whether `/v1/admin/` is there at all. InputError if the token file is none
    of ours.
    """

    def __init__(self, workspace: Workspace, *, administration: bool = False) -> None:
        self._path = tokens_path(workspace)
        self._administration = administration
        self._seen = self._state()
        self._looked_s = time.monotonic()
        self._holders: list[Holder] | None = None
        """None: open."""
        if self._seen is not None:
            self._load()

    def guard(self, app: FastAPI, rejected: Callable[[str, str], None]) -> None:
        """Puts the check before every route of `app`, and tokens into its OpenAPI document.

        `rejected` is told of each refusal: `rate`, else `access`; and what is said.
        """
        app.add_middleware(_Guard, access=self, rejected=rejected)
        described = app.openapi
        app.openapi = lambda: _with_tokens(described())  # type: ignore[method-assign]

    def check(self, authorization: str, scope: Scope, now_s: float) -> str | None:
        """The name of the token in an `Authorization` header, None while open.

        Refused with 401, 403 or 429 if it may not call this scope now, `time.monotonic()`.
        """
        if now_s - self._looked_s >= LOOK_S:
            self._looked_s = now_s
            self._look()
        if self._holders is None:
            return None
        holder = self._holder(authorization)
        if scope not in holder.scopes:
            challenge = f'{CHALLENGE}, error="insufficient_scope", scope="{scope}"'
            reason = f"token {holder.name} lacks the scope {scope}"
            raise Refused(403, reason, {"WWW-Authenticate": challenge}, "access")
        wait_s = holder.bucket.take(now_s)
        if wait_s > 0:
            reason = f"token {holder.name} may make {holder.bucket.per_s:g} requests a second"
            raise Refused(429, reason, {"Retry-After": str(ceil(wait_s))}, "rate")
        return holder.name

    def check_administration(self, client: str, host_header: str) -> None:
        """Refused unless it is on, and the request comes from this machine and names it.

        Behind a proxy on this machine every request comes from here: keep it off there.
        """
        if not self._administration:
            raise Refused(404, "Not Found", {}, "access")
        # A web page may have its own name point at 127.0.0.1, but cannot choose the Host.
        if not (is_loopback(client) and is_loopback_name(host_header)):
            raise Refused(403, "administration is allowed on loopback only", {}, "access")

    def _holder(self, authorization: str) -> Holder:
        """The holder of good credentials; 401 otherwise."""
        if not authorization:
            reason = "this server wants a bearer token"
            raise Refused(401, reason, {"WWW-Authenticate": CHALLENGE}, "access")
        scheme, _, secret = authorization.partition(" ")
        found = None
        if scheme.lower() == "bearer" and len(secret) <= MAX_SECRET:
            sha256 = token_sha256(secret.strip())
            # Each is compared, in constant time: how long it takes tells nothing of any.
            for holder in self._holders or ():
                if hmac.compare_digest(holder.sha256, sha256):
                    found = holder
        if found is None or time.time() >= found.expires_s:
            reason = "the bearer token is unknown, revoked or expired"
            challenge = f'{CHALLENGE}, error="invalid_token"'
            raise Refused(401, reason, {"WWW-Authenticate": challenge}, "access")
        return found

    def _look(self) -> None:
        """Reads the file again if it changed. What cannot be read leaves the tokens as they are."""
        try:
            state = self._state()
            if state != self._seen:
                self._seen = state
                self._load()
                log.info("access tokens read", tokens=len(self._holders or ()))
        except (InputError, OSError) as error:
            log.error("access tokens not read: the earlier ones hold", problem=str(error))

    def _load(self) -> None:
        """Takes over the file's tokens, with the buckets of those that had one of this rate."""
        before = {holder.sha256: holder.bucket for holder in self._holders or ()}
        holders = []
        for token in read_tokens(self._path) or []:
            bucket = before.get(bytes.fromhex(token.sha256))
            if bucket is None or bucket.per_s != token.requests_per_s:
                bucket = Bucket(token.requests_per_s, time.monotonic())
            holders.append(Holder(token, bucket))
        self._holders = holders

    def _state(self) -> tuple[int, int, int] | None:
        """What changes whenever the file is written, None without a file."""
        try:
            found = os.stat(self._path)
        except FileNotFoundError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size


class _Guard:
    """The check, as ASGI middleware."""

    def __init__(self, app: ASGIApp, access: Access, rejected: Callable[[str, str], None]) -> None:
        self._app, self._access, self._rejected = app, access, rejected

    async def __call__(self, request: RequestScope, receive: Receive, send: Send) -> None:
        scope = _scope_of(request["path"]) if request["type"] == "http" else None
        if scope is not None:
            headers = dict(request["headers"])
            try:
                if scope == "administer":
                    client, _ = request.get("client") or ("", 0)
                    host = headers.get(b"host", b"").decode("latin-1")
                    self._access.check_administration(client, host)
                authorization = headers.get(b"authorization", b"").decode("latin-1")
                self._access.check(authorization, scope, time.monotonic())
            except Refused as error:
                self._rejected(error.counted, str(error))
                answer = JSONResponse({"error": str(error)}, error.status, headers=error.header)
                await answer(request, receive, send)
                return
        await self._app(request, receive, send)


def _scope_of(path: str) -> Scope | None:
    """The scope that a path wants, None where it is open to all."""
    if path in OPEN_PATHS or path.startswith(OPEN_PREFIX):
        return None
    return next(scope for prefix, scope in SCOPE_OF_PREFIX if path.startswith(prefix))


def _with_tokens(document: dict[str, Any]) -> dict[str, Any]:
    """The OpenAPI document, with the operations that want a token marked."""
    schemes = document.setdefault("components", {}).setdefault("securitySchemes", {})
    schemes["token"] = {"type": "http", "scheme": "bearer"}
    for path, operations in document["paths"].items():
        if _scope_of(path) is not None:
            for operation in operations.values():
                operation["security"] = [{"token": []}]
    return document
