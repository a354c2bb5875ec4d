"""Which stores a workspace uses: `feature_store.yaml`, checked before Feast reads it.

    crescendo --stores 'redis://HOST:6379/0?registry=postgresql://HOST/feast' publish
    crescendo --stores FOLDER/feature_store.redis.yaml publish

Writes `<workspace>/feature_store.yaml`, an ordinary Feast file: any team's
`FeatureStore(repo_path=...)` reads it. `${NAME}` in it is taken from the environment, by Feast too;
that is the place of passwords. One written out makes the file its owner's alone (mode 0600).
"""

import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from feature_repo.durable_files import replacing
from feature_repo.errors import InputError

SETTINGS_FILE = "feature_store.yaml"
WATERMARKS = "materialization"
CONNECT_TIMEOUT_S = 5
STATEMENT_TIMEOUT_MS = 30_000

PACKED_SQLITE = "feature_repo.stores.packed_sqlite.PackedSqliteOnlineStore"
PACKED_REDIS = "feature_repo.stores.packed_redis.PackedRedisOnlineStore"
ASOF = "feature_repo.stores.asof.AsofOfflineStore"

# The first flag keeps reads alive while a view is materialized, the second allows two versions
# of a view side by side.
REGISTRY_FLAGS = {
    "cache_ttl_seconds": 60,
    "serve_features_while_materializing": True,
    "enable_online_feature_view_versioning": True,
}
STORE_SETTINGS: dict[str, Any] = {
    "project": "crescendo",
    "provider": "local",
    "registry": {
        "registry_type": "file",
        "registry_store_type": "feature_repo.stores.atomic_registry.AtomicFileRegistryStore",
        "path": "registry.db",
        **REGISTRY_FLAGS,
    },
    "online_store": {"type": PACKED_SQLITE, "path": "online.db"},
    "offline_store": {"type": ASOF},
    "materialization": {"online_write_batch_size": 10_000},
    "entity_key_serialization_version": 3,
}
"""The embedded stores, which need no server."""

WRONG_OFFLINE_STORES = {
    "file": "DaskOfflineStore",
    "dask": "DaskOfflineStore",
    "ray": "RayOfflineStore",
}
WRONG_ENGINES = {"ray.engine": "RayComputeEngine"}


class StoreSettings(BaseModel):
    """`feature_store.yaml` as Feast reads it. What is not named here is passed on unchecked."""

    model_config = ConfigDict(extra="allow", hide_input_in_errors=True)

    project: str = Field(min_length=1)
    registry: dict[str, Any] = Field(default_factory=dict)
    online_store: dict[str, Any] = Field(default_factory=lambda: {"type": "sqlite"})
    offline_store: dict[str, Any] = Field(default_factory=lambda: {"type": "dask"})
    batch_engine: dict[str, Any] = Field(default_factory=lambda: {"type": "local"})

    @field_validator("registry", mode="before")
    @classmethod
    def _registry_path(cls, value: object) -> object:
        return {"registry_type": "file", "path": value} if isinstance(value, str) else value

    @field_validator("online_store", "offline_store", "batch_engine", mode="before")
    @classmethod
    def _type_alone(cls, value: object) -> object:
        return {"type": value} if isinstance(value, str) else value

    def addresses(self) -> dict[str, str]:
        """Where the project, the registry and the online store are, without passwords."""
        online = self.online_store
        place = online.get("connection_string") or online.get("path") or online.get("host") or ""
        return {
            "project": self.project,
            "registry": hide_passwords(str(self.registry.get("path", ""))),
            "online_store": hide_passwords(f"{online.get('type')} {place}".strip()),
        }


def parse_stores(stores: str) -> str:
    """`--stores` -> the text of a `feature_store.yaml`.

    `stores` is `redis://[USER][:PASSWORD]@HOST:PORT/DB` (`rediss://` for TLS), after `?` also
    `registry=` (an SQLAlchemy URL; `&` in it as `%26`) and `project=`; or the path of a YAML file.
    Raises InputError for anything else.
    """
    if "://" not in stores:
        path = Path(stores)
        if not path.is_file():
            raise InputError(
                f"--stores {stores}: no such file; expected redis://HOST:PORT/DB"
                "[?registry=postgresql://HOST/DATABASE] or the path of a feature_store.yaml"
            )
        return path.read_text()
    shown = hide_passwords(stores)
    url = urlsplit(stores)
    options = {name: values[-1] for name, values in parse_qs(url.query).items()}
    unknown = sorted(set(options) - {"registry", "project"})
    try:
        host, port = url.hostname, url.port or 6379
    except ValueError as error:
        raise InputError(f"--stores {shown}: {error}") from error
    if url.scheme not in ("redis", "rediss") or not host or unknown:
        wrong = f"unknown option {', '.join(unknown)}" if unknown else "not a Redis address"
        raise InputError(
            f"--stores {shown}: {wrong}; expected "
            "redis://HOST:PORT/DB[?registry=postgresql://HOST/DATABASE][&project=NAME]"
        )
    database = url.path.strip("/") or "0"
    if not database.isdigit():
        raise InputError(f"--stores {shown}: database is {database!r}; expected a number")
    parts = [f"{host}:{port}", f"db={database}"]
    parts += ["ssl=true"] if url.scheme == "rediss" else []
    for name, value in (("username", url.username), ("password", url.password)):
        if value:
            value = unquote(value)
            if "," in value:  # Feast's connection strings know no escape
                raise InputError(f"--stores {shown}: the {name} must not contain a comma")
            parts.append(f"{name}={value}")
    settings = {**STORE_SETTINGS, "project": options.get("project", STORE_SETTINGS["project"])}
    settings["online_store"] = {"type": PACKED_REDIS, "connection_string": ",".join(parts)}
    if "registry" in options:
        settings["registry"] = sql_registry(options["registry"])
    return yaml.safe_dump(settings, sort_keys=False)


def sql_registry(url: str) -> dict[str, Any]:
    """Feast's SQL registry at an SQLAlchemy URL, with bounded waits for PostgreSQL.

    A thread renews the cache, so no read waits for the database and reads go on without it.
    """
    settings: dict[str, Any] = {
        "registry_type": "sql",
        # Feast means psycopg 3 by the bare name; SQLAlchemy alone would look for psycopg 2.
        "path": re.sub(r"^postgres(ql)?://", "postgresql+psycopg://", url),
        "cache_mode": "thread",
        **REGISTRY_FLAGS,
    }
    if settings["path"].startswith("postgresql"):
        settings["sqlalchemy_config_kwargs"] = {
            "pool_pre_ping": True,
            "connect_args": {
                "connect_timeout": CONNECT_TIMEOUT_S,
                "options": f"-c statement_timeout={STATEMENT_TIMEOUT_MS}",
            },
        }
    return settings


def check_settings(text: str, name: str | Path) -> StoreSettings:
    """The settings in a file's text, `${NAME}` taken from the environment.

    Raises InputError naming the setting that is wrong and what to set it to.
    """
    try:
        values = yaml.safe_load(os.path.expandvars(text)) or {}  # as Feast does
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise InputError(f"{name} is not YAML{where}") from None  # the cause would print the text
    missing = sorted(set(re.findall(r"\$\{(\w+)\}", str(values))))
    if missing:
        raise InputError(f"{name}: environment variable {', '.join(missing)} is not set; export it")
    try:
        settings = StoreSettings.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(
            f"{name}: {'.'.join(map(str, first['loc'])) or 'the file'}: {first['msg']}"
        ) from None  # the cause would print the values
    offline = settings.offline_store.get("type", "dask")
    if offline in WRONG_OFFLINE_STORES or offline.endswith(tuple(WRONG_OFFLINE_STORES.values())):
        raise InputError(
            f"{name}: offline_store.type is {offline!r}, which returns wrong point-in-time rows; "
            f"set it to duckdb or {ASOF}"
        )
    engine = settings.batch_engine.get("type", "local")
    if engine in WRONG_ENGINES or engine.endswith(tuple(WRONG_ENGINES.values())):
        raise InputError(
            f"{name}: batch_engine.type is {engine!r}, which loses write errors; set it to local"
        )
    if settings.online_store.get("vector_enabled"):
        raise InputError(
            f"{name}: online_store.vector_enabled is true, which breaks every other list feature; "
            "set it to false"
        )
    return settings


def read_settings(root: Path) -> StoreSettings:
    """The checked settings of a workspace folder; the embedded stores' are written if missing."""
    path = root / SETTINGS_FILE
    if not path.exists():
        write_settings(path, yaml.safe_dump(STORE_SETTINGS, sort_keys=False))
    text = path.read_text()
    readers = path.stat().st_mode & 0o077
    if has_password(text) and readers:
        raise InputError(
            f"{path} holds a password and others may read it; run `chmod 600 {path}`, or write "
            "${NAME} in its place and export NAME"
        )
    return check_settings(text, path)


def hide_passwords(text: str) -> str:
    """The text with `***` for passwords in URLs and connection strings."""
    text = re.sub(r"(://[^\s:/@]*:)[^\s/]*@", r"\1***@", text)
    return re.sub(r"(password=)[^\s,&]+", r"\1***", text, flags=re.IGNORECASE)


def has_password(text: str) -> bool:
    """Whether a password is written out; `${NAME}` is none."""
    without_names = re.sub(r"\$\{\w+\}", "", text)
    found = re.search(
        r"://[^\s:/@]*:[^\s/@]+@|password['\"]?[=:][ \t]*['\"]?[^\s,'\"]", without_names
    )
    return found is not None


def write_settings(path: Path, text: str) -> None:
    """Replaces the settings; with a password, the file is its owner's alone from the first byte."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, mode=0o600 if has_password(text) else 0o644) as stream:
        stream.write(text.encode())
