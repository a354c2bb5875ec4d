"""Who is meant: a user's number in our tables, or the id that the source gave it.

`resolve_user(workspace, "U-17")` looks the text up in `tables/id_maps/users.parquet`, which is
there when a source's ids are strings; a whole number that the map lacks, or `id:17`, is the number.
"""

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from feature_repo.errors import InputError
from feature_repo.workspace import Workspace

NUMBER_PREFIX = "id:"
USERS_MAP = "users.parquet"


@dataclass(frozen=True, kw_only=True)
class User:
    """One user: the number, and the source's own id where the number is ours."""

    number: int
    source_id: str | None = None


def users_map(workspace: Workspace) -> pa.Table:
    """`source_id`, `id` of every mapped user; no rows where the source's ids are numbers."""
    path = workspace.id_maps / USERS_MAP
    if not path.is_file():
        return pa.table({"source_id": pa.array([], pa.string()), "id": pa.array([], pa.int64())})
    return pq.read_table(path)


def resolve_user(workspace: Workspace, text: str) -> User:
    """The user that `text` names. InputError where it names none, or two."""
    numbers = users_map(workspace)
    wanted = text.removeprefix(NUMBER_PREFIX)
    number = _whole_number(wanted)
    if not text.startswith(NUMBER_PREFIX):
        named = numbers.filter(pc.equal(numbers["source_id"], text))["id"].to_pylist()
        if named:
            taken = number is not None and number != named[0]
            if taken and number in numbers["id"].to_pylist():
                raise InputError(
                    f"user {text!r} is the source's id of number {named[0]}, and the number of "
                    f"another user; give {NUMBER_PREFIX}{named[0]} or {NUMBER_PREFIX}{number}"
                )
            return User(number=named[0], source_id=text)
    if number is None:
        where = f"in {workspace.id_maps / USERS_MAP}" if len(numbers) else "a whole number"
        raise InputError(
            f"user is {text!r}; expected a user's number or an id of the source {where}"
        )
    known = numbers.filter(pc.equal(numbers["id"], number))["source_id"].to_pylist()
    return User(number=number, source_id=known[0] if known else None)


def _whole_number(text: str) -> int | None:
    try:
        number = int(text)
    except ValueError:
        return None
    return number if -(2**63) <= number < 2**63 else None
