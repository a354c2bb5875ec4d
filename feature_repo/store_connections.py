"""Reaches the registry and the online store, or says within seconds which one cannot be reached.

Messages name the address, never a password.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from feast import FeatureStore
from feast.infra.registry.base_registry import BaseRegistry
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError, ProgrammingError

from feature_repo.errors import InputError
from feature_repo.store_settings import CONNECT_TIMEOUT_S, StoreSettings, hide_passwords


def connect_registry(store: FeatureStore) -> BaseRegistry:
    """The store's registry, connected. A SQL one makes its tables when they are missing."""
    try:
        with registry_errors(store):
            try:
                return store.registry
            except (IntegrityError, ProgrammingError):
                # Two first users make the tables at once: the second finds them made.
                return store.registry
    except ModuleNotFoundError as error:
        raise InputError(
            f"the SQL registry needs the package {error.name}; for PostgreSQL run "
            "`pip install 'crescendo[postgres]'`"
        ) from error


@contextmanager
def registry_errors(store: FeatureStore) -> Iterator[None]:
    """What a SQL registry's driver says inside, as an InputError that names the registry.

    Reads from the registry's cache never get here: they go on without it.
    """
    address = hide_passwords(str(store.config.registry.path))
    try:
        yield
    except OperationalError as error:
        raise InputError(
            f"the registry at {address} cannot be reached ({_first_line(error.orig)}); "
            "start it, or name another with --stores"
        ) from None  # the cause would print the URL
    except DBAPIError as error:
        raise InputError(f"the registry at {address} refuses: {_first_line(error.orig)}") from None


def check_online_store(settings: StoreSettings) -> None:
    """Asks a Redis online store for a sign of life. Other stores are taken as they are.

    Raises InputError if none comes within CONNECT_TIMEOUT_S.
    """
    connection = settings.online_store.get("connection_string")
    if not connection or settings.online_store.get("redis_type", "redis") != "redis":
        return
    try:
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry
    except ModuleNotFoundError as error:
        raise InputError(
            "a Redis online store needs the package redis; run `pip install 'crescendo[redis]'`"
        ) from error

    nodes = [part for part in connection.split(",") if "=" not in part]
    options = dict(part.split("=", 1) for part in connection.split(",") if "=" in part)
    host, _, port = nodes[0].partition(":")
    arguments: dict[str, Any] = {
        "db": int(options.get("db", 0)),
        "username": options.get("username"),
        "password": options.get("password"),
        "ssl": options.get("ssl") == "true",
    }
    try:
        with redis.Redis(
            host=host,
            port=int(port or 6379),
            socket_connect_timeout=CONNECT_TIMEOUT_S,
            socket_timeout=CONNECT_TIMEOUT_S,
            retry=Retry(NoBackoff(), 0),
            **arguments,
        ) as client:
            client.ping()
    except redis.RedisError as error:
        raise InputError(
            f"the online store at redis {hide_passwords(connection)} cannot be reached "
            f"({_first_line(error)}); start it, or name another with --stores"
        ) from None


def _first_line(error: BaseException | None) -> str:
    return hide_passwords(str(error).strip().split("\n")[0])
