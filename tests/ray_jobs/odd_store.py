"""An online store that Feast can open and nobody can delete a user from."""

from typing import Literal

from feast.infra.online_stores.online_store import OnlineStore
from feast.repo_config import FeastConfigBaseModel


class OddOnlineStoreConfig(FeastConfigBaseModel):
    type: Literal["tests.ray_jobs.odd_store.OddOnlineStore"] = (
        "tests.ray_jobs.odd_store.OddOnlineStore"
    )


class OddOnlineStore(OnlineStore):
    def online_write_batch(self, config, table, data, progress):
        raise NotImplementedError

    def online_read(self, config, table, entity_keys, requested_features=None):
        raise NotImplementedError

    def update(self, config, *arguments, **named):
        raise NotImplementedError

    def teardown(self, config, tables, entities):
        raise NotImplementedError
