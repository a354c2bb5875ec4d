"""Schema changes of registered views: additive ones pass, those that break a release do not.

`refuse_breaking(store, objects)` runs before every `feast apply` (`feature_repo.store.apply`) and
compares the registry's views with what is about to replace them. New views, features, tags and
descriptions are additive. What breaks a reader: a feature that is gone (a new name is a new feature
and a lost one), another type, another entity or key, a sequence that keeps fewer listens.

A breaking change is refused where a release, or another team's feature service, reads what changes.
Where nobody does it is allowed. Services that are applied in the same call count with what they
will read, the others with what the registry says they read.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from feast import Entity, FeatureService, FeatureStore

from feature_repo import schema
from feature_repo.errors import ArtifactError

RELEASE_TAG = "release"
GONE = "nothing"
WHOLE_VIEW = None


@dataclass(frozen=True, kw_only=True)
class BreakingChange:
    """One thing that readers of a view would no longer find as it was."""

    view: str
    feature: str | None
    """None: the change concerns every feature of the view."""
    what: str
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.view}: {self.what} is {self.before}, would become {self.after}"


@dataclass(frozen=True, kw_only=True)
class Reader:
    """A release or a feature service, and the features it reads: view -> names.

    `features` is None where the registry lacks the release's service: it counts as a reader of all.
    """

    name: str
    features: dict[str, set[str]] | None

    def reads(self, change: BreakingChange) -> bool:
        if self.features is None:
            return True
        names = self.features.get(change.view, set())
        return bool(names) if change.feature is WHOLE_VIEW else change.feature in names


def refuse_breaking(store: FeatureStore, objects: Sequence[Any]) -> None:
    """Raises ArtifactError if applying `objects` would break a release or a service.

    The error names each view and feature, the old and the new type, and the readers.
    """
    changes = breaking_changes(store, objects)
    if not changes:
        return
    readers = list(registered_readers(store, objects))
    refused = []
    for change in changes:
        names = sorted({reader.name for reader in readers if reader.reads(change)})
        if names:
            refused.append(f"{change}; read by {', '.join(names)}")
    if refused:
        raise ArtifactError(
            "this apply would break what is in use, nothing was changed: "
            + " | ".join(refused)
            + "; add the new form under another name and keep the old one until no release reads "
            "it, then drop those releases with `crescendo retire`"
        )


def breaking_changes(store: FeatureStore, objects: Sequence[Any]) -> list[BreakingChange]:
    """What `objects` would take away from the views that the registry holds now."""
    registered = {view.name: view for view in _views(store)}
    keys = {entity.name: entity for entity in _entities(store)}
    new_keys = {item.name: item for item in objects if isinstance(item, Entity)}
    replaced = {item.name: item for item in objects if _is_view(item)}
    changes: list[BreakingChange] = []
    for name, new in replaced.items():
        if name in registered:
            changes += _of_view(registered[name], new)
    for name, entity in new_keys.items():
        if name not in keys:
            continue
        before, after = _key(keys[name]), _key(entity)
        if before != after:
            changes += [
                _whole(view.name, f"the key of entity {name}", before, after)
                for view in registered.values()
                if name in getattr(view, "entities", ())
            ]
    return changes


def registered_readers(store: FeatureStore, objects: Sequence[Any]) -> Iterator[Reader]:
    """Everybody who reads features by a service: releases by their id, others by their name."""
    replaced = {item.name for item in objects if isinstance(item, FeatureService)}
    services = {
        service.name: service
        for service in store.registry.list_feature_services(store.project, allow_cache=False)
    }
    of_release = dict(_release_services(Path(store.repo_path)))
    for name, service in services.items():
        release = service.tags.get(RELEASE_TAG)
        if release is not None:
            of_release.setdefault(release, name)
        elif name not in replaced:
            yield Reader(name=f"feature service {name}", features=_features(service))
    for release, name in of_release.items():
        found = services.get(name)
        yield Reader(
            name=f"release {release}", features=None if found is None else _features(found)
        )


def _release_services(root: Path) -> Iterator[tuple[str, str]]:
    """(release id, its feature service) of each `releases/*.json`."""
    for path in sorted((root / "releases").glob("*.json")):
        try:
            release = json.loads(path.read_text())
            yield release["release_id"], release["feature_service"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ArtifactError(
                f"{path} is not a release ({error}); bring it back, or remove it and run "
                "`crescendo release`"
            ) from error


def _of_view(old: Any, new: Any) -> Iterator[BreakingChange]:
    if type(old) is not type(new):
        yield _whole(old.name, "the kind of view", type(old).__name__, type(new).__name__)
        return
    # Feast spells "no entity" as a dummy entity of its own, alike on both sides.
    before, after = _entity_names(old), _entity_names(new)
    if before != after:
        yield _whole(old.name, "the entity", ", ".join(before), ", ".join(after))
    types = {field.name: str(field.dtype) for field in new.features}
    for field in old.features:
        after_type = types.get(field.name, GONE)
        if after_type != str(field.dtype):
            yield BreakingChange(
                view=old.name,
                feature=field.name,
                what=f"the type of feature {field.name}",
                before=str(field.dtype),
                after=after_type,
            )
    tag = schema.SEQUENCE_LENGTH_TAG
    length, shorter = old.tags.get(tag), new.tags.get(tag)
    if length is not None and (shorter is None or int(shorter) < int(length)):
        yield _whole(old.name, tag, length, shorter or GONE)


def _whole(view: str, what: str, before: str, after: str) -> BreakingChange:
    return BreakingChange(view=view, feature=WHOLE_VIEW, what=what, before=before, after=after)


def _entity_names(view: Any) -> list[str]:
    names = getattr(view, "entities", None) or ()
    return sorted(entity if isinstance(entity, str) else entity.name for entity in names)


def _key(entity: Entity) -> str:
    return f"{entity.join_key} {entity.value_type.name}"


def _features(service: FeatureService) -> dict[str, set[str]]:
    features: dict[str, set[str]] = {}
    for projection in service.feature_view_projections:
        names = {field.name for field in projection.features}
        features.setdefault(projection.name, set()).update(names)
    return features


def _is_view(item: Any) -> bool:
    return hasattr(item, "features") and not isinstance(item, FeatureService)


def _views(store: FeatureStore) -> Iterable[Any]:
    return store.registry.list_all_feature_views(store.project, allow_cache=False)


def _entities(store: FeatureStore) -> Iterable[Entity]:
    return store.registry.list_entities(store.project, allow_cache=False)
