"""Access tokens of a workspace: made, listed, revoked, and read by the server.

    crescendo token create --name web --scope rank --scope write_events --requests-per-s 200
    crescendo token list
    crescendo token revoke --name web

Writes `<workspace>/access/tokens.json` (0600, in a folder of 0700), which a running server reads
again within a second. Of a token it holds the SHA-256 alone. A slow hash such as argon2 makes
guessing dear where people choose the secret; ours is 256 random bits, which nobody guesses, and a
slow hash would cost milliseconds on every request.
"""

import hashlib
import json
import re
import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from math import isfinite
from pathlib import Path
from typing import Any, Literal, get_args

from feature_repo.artifacts import write_json
from feature_repo.errors import InputError
from feature_repo.scratch import locked
from feature_repo.workspace import Workspace

Scope = Literal["rank", "write_events", "administer"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
PREFIX = "crescendo_"
"""Begins every token, so that a scanner finds one that was committed or pasted somewhere."""
SECRET_BYTES = 32
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
MAX_REQUESTS_PER_S = 1e6


@dataclass(frozen=True, kw_only=True)
class Token:
    """One token as stored. InputError if it is none that `create_token` could have made."""

    name: str
    sha256: str
    """Of the whole token, 64 hex digits."""
    scopes: tuple[Scope, ...]
    created_at: str
    expires_at: str | None
    """ISO time with a zone; from then on the token is refused. None: never."""
    requests_per_s: float
    """Of each serving process; a second's worth may come at once."""

    def __post_init__(self) -> None:
        if not (isinstance(self.name, str) and NAME.fullmatch(self.name)):
            raise InputError(
                "name must be 1 to 64 of A-Z a-z 0-9 . _ - and begin with a letter or digit, "
                f"got {self.name!r}"
            )
        if not (isinstance(self.sha256, str) and re.fullmatch("[0-9a-f]{64}", self.sha256)):
            raise InputError(f"sha256 of token {self.name} must be 64 hex digits")
        if not self.scopes or not set(self.scopes) <= set(SCOPES):
            raise InputError(
                f"scopes must be one or more of {', '.join(SCOPES)}, got {list(self.scopes)}"
            )
        number = self.requests_per_s
        if not (isinstance(number, int | float) and isfinite(number)) or isinstance(number, bool):
            raise InputError(f"requests_per_s must be a number, got {number!r}")
        if not 0 < number <= MAX_REQUESTS_PER_S:
            raise InputError(
                f"requests_per_s must be above 0 and at most {MAX_REQUESTS_PER_S:g}, got {number}"
            )
        if self.expires_at is not None and _moment(self.expires_at) is None:
            raise InputError(f"expires_at must be ISO time with a zone, got {self.expires_at!r}")

    @property
    def expires_s(self) -> float:
        """Seconds since 1970 at which it ends; infinity if never."""
        moment = _moment(self.expires_at) if self.expires_at else None
        return float("inf") if moment is None else moment.timestamp()


def create_token(
    workspace: Workspace,
    *,
    name: str,
    scopes: Sequence[str],
    requests_per_s: float = 100.0,
    valid_days: float | None = None,
) -> dict[str, Any]:
    """Makes a token. The answer's `token` is shown this once: it is stored nowhere.

    InputError if the name is taken, or an option is no token's; then nothing changed.
    """
    if valid_days is not None and not 0 < valid_days <= 36_500:
        raise InputError(f"valid_days must be above 0 and at most 36500, got {valid_days}")
    secret = PREFIX + secrets.token_urlsafe(SECRET_BYTES)
    now = datetime.now(UTC)
    token = Token(
        name=name,
        sha256=token_sha256(secret).hex(),
        scopes=tuple(dict.fromkeys(scopes)),  # type: ignore[arg-type]  # checked by Token
        created_at=now.isoformat(),
        expires_at=None if valid_days is None else (now + timedelta(days=valid_days)).isoformat(),
        requests_per_s=requests_per_s,
    )
    path = tokens_path(workspace)
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.parent):
        tokens = read_tokens(path) or []
        if any(other.name == name for other in tokens):
            raise InputError(
                f"a token named {name} exists; run `crescendo token revoke --name {name}` first, "
                "or take another name"
            )
        _write(path, [*tokens, token])
    return {**_shown(token), "token": secret}


def list_tokens(workspace: Workspace) -> dict[str, Any]:
    """What is known of each token, in the order in which they were made; no hash."""
    return {"tokens": [_shown(token) for token in read_tokens(tokens_path(workspace)) or []]}


def revoke_token(workspace: Workspace, *, name: str) -> dict[str, Any]:
    """Removes a token; servers refuse it within a second. InputError if there is none.

    The last one gone, the file stays, and with it a server that lets nobody in.
    """
    path = tokens_path(workspace)
    tokens = read_tokens(path) or []
    if tokens:
        with locked(path.parent):
            tokens = read_tokens(path) or []
            left = [token for token in tokens if token.name != name]
            if len(left) < len(tokens):
                _write(path, left)
                return {"revoked": name, "tokens": len(left)}
    names = ", ".join(token.name for token in tokens) or "none at all"
    raise InputError(f"no token is named {name}; there is {names}, see `crescendo token list`")


def tokens_path(workspace: Workspace) -> Path:
    return workspace.root / "access" / "tokens.json"


def read_tokens(path: Path) -> list[Token] | None:
    """The stored tokens, None without a file. InputError if it is none of ours."""
    try:
        written = path.read_text()
    except FileNotFoundError:
        return None
    try:
        tokens = [
            Token(**{**fields, "scopes": tuple(fields["scopes"])})
            for fields in json.loads(written)["tokens"]
        ]
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"{path} holds no tokens ({error}); remove it and make them again with "
            "`crescendo token create`"
        ) from error
    return tokens


def token_sha256(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def _write(path: Path, tokens: Sequence[Token]) -> None:
    # The folder is closed first: until its own mode is set, the file is as open as the umask says.
    path.parent.chmod(0o700)
    write_json(path, {"tokens": [asdict(token) for token in tokens]})
    path.chmod(0o600)


def _shown(token: Token) -> dict[str, Any]:
    return {name: value for name, value in asdict(token).items() if name != "sha256"}


def _moment(text: str) -> datetime | None:
    """The time that ISO text names, None if it names none or has no zone."""
    try:
        moment = datetime.fromisoformat(text)
    except (ValueError, TypeError):
        return None
    return moment if moment.tzinfo else None
