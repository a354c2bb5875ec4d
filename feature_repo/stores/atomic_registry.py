"""Feast's file registry, replaced as a whole at every write.

    registry:
      registry_type: file
      registry_store_type: feature_repo.stores.atomic_registry.AtomicFileRegistryStore
      path: registry.db

Feast 0.67 empties the file before it writes it: a reader that refreshes its cache in that moment is
told that views and services do not exist, and a writer that is killed in it leaves nothing. Here
the new registry is written beside the old one, synced and renamed. Costs one more sync of a folder.
"""

import uuid
from datetime import UTC, datetime

from feast.infra.registry.file import FileRegistryStore
from feast.protos.feast.core.Registry_pb2 import Registry

from feature_repo.durable_files import replacing, sync


class AtomicFileRegistryStore(FileRegistryStore):
    """A file registry whose readers see the state before a write or the one after it."""

    def _write_registry(self, registry_proto: Registry) -> None:
        registry_proto.version_id = str(uuid.uuid4())
        registry_proto.last_updated.FromDatetime(datetime.now(UTC))
        folder = self._filepath.parent
        folder.mkdir(exist_ok=True)
        with replacing(self._filepath) as stream:
            stream.write(registry_proto.SerializeToString())
        sync(folder)
