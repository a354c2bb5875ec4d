"""Which stores a workspace was published for, so that a change of stores is never silent.

`published_stores.json` holds their addresses. When the settings name others, whether by `--stores`
or by an editor, nothing is read until `crescendo publish` has filled them: new stores are empty,
and empty rows look like those of users nobody knows.
"""

import json
from pathlib import Path
from typing import Any

from feature_repo.artifacts import write_json
from feature_repo.errors import ArtifactError, InputError
from feature_repo.store_settings import (
    SETTINGS_FILE,
    StoreSettings,
    check_settings,
    has_password,
    hide_passwords,
    parse_stores,
    read_settings,
    write_settings,
)
from feature_repo.workspace import Workspace

PUBLISHED_FILE = "published_stores.json"


def set_stores(workspace: Workspace, stores: str) -> dict[str, Any]:
    """Makes `--stores` the workspace's stores.

    Returns `changed`, `stores` (addresses without passwords) and `publish_needed`. Raises
    InputError for settings that are refused; then the workspace keeps what it has.
    """
    text = parse_stores(stores)
    settings = check_settings(text, hide_passwords(stores))
    if has_password(text) and not workspace.is_local:
        raise InputError(
            f"--stores: a password would be stored in {workspace.location}; write "
            "'${NAME}' in its place and export NAME"
        )
    path = workspace.root / SETTINGS_FILE
    changed = not path.exists() or path.read_text() != text
    if changed:
        write_settings(path, text)
    return {
        "changed": changed,
        "stores": settings.addresses(),
        "publish_needed": _published(workspace.root) != settings.addresses(),
    }


def check_published(root: Path, settings: StoreSettings) -> None:
    """Raises ArtifactError if the workspace was published for other stores than these."""
    published, now = _published(root), settings.addresses()
    if published is not None and published != now:
        changes = "; ".join(
            f"{name} from {published.get(name)} to {place}"
            for name, place in now.items()
            if published.get(name) != place
        )
        raise ArtifactError(
            f"the stores of {root} were changed since it was published: {changes}; "
            "run `crescendo publish`"
        )


def end_publishing(root: Path) -> None:
    """From now on the stores that the settings name hold what the workspace published."""
    addresses = read_settings(root).addresses()
    if _published(root) != addresses:
        write_json(root / PUBLISHED_FILE, addresses)


def _published(root: Path) -> dict[str, str] | None:
    path = root / PUBLISHED_FILE
    return json.loads(path.read_text()) if path.exists() else None
