"""Where everything a run makes lies: one folder, the layout of the platform's artifacts.

A workspace in an object store is worked on in a local copy (`working_copy.py`), which is such a
folder too and knows whose copy it is.
"""

from dataclasses import dataclass
from pathlib import Path

from feature_repo.errors import InputError

LOCATION_FILE = ".location"
"""In a working copy: the URI that it is a copy of. It is never uploaded."""
READ_ONLY = "read only"
"""Second line of that file while nothing will be published."""


@dataclass(frozen=True)
class Workspace:
    """Paths under one workspace folder. Nothing is created until something is written."""

    root: Path

    def __post_init__(self) -> None:
        # DuckDB and Feast read globs under this path, and it stands inside SQL strings.
        bad = sorted(set(str(self.root)) & set("*?[]'\""))
        if bad or ":/" in str(self.root):
            raise InputError(
                f"workspace must be a local folder, or s3://BUCKET/PREFIX where a command opens "
                f"it, without any of * ? [ ] ' \", got {self.root}"
            )

    @property
    def location(self) -> str:
        """Where others find this workspace: its folder, or the URI that it is a copy of."""
        try:
            return (self.root / LOCATION_FILE).read_text().splitlines()[0]
        except FileNotFoundError:
            return str(self.root.absolute())

    @property
    def is_local(self) -> bool:
        """False in the working copy of a workspace in an object store."""
        return not (self.root / LOCATION_FILE).exists()

    @property
    def is_read_only(self) -> bool:
        """True in a working copy whose changes will be thrown away."""
        return not self.is_local and READ_ONLY in (self.root / LOCATION_FILE).read_text()

    @property
    def tracks(self) -> Path:
        """Contract table of the catalogue: a folder of parquet files."""
        return self.root / "tables" / "tracks"

    @property
    def events(self) -> Path:
        """Contract table of the listening log: a folder of parquet files."""
        return self.root / "tables" / "events"

    @property
    def rejected(self) -> Path:
        """Rows that broke the contract, with the reason."""
        return self.root / "tables" / "rejected"

    @property
    def id_maps(self) -> Path:
        """`users.parquet`, `tracks.parquet`: a source's own ids beside our int64 ones."""
        return self.root / "tables" / "id_maps"

    @property
    def demo_world(self) -> Path:
        """The demo's audio files and the hidden truth about its listeners."""
        return self.root / "demo_world"

    def embeddings(self, modality: str, encoder_id: str) -> Path:
        return self.root / "embeddings" / modality / encoder_id

    @property
    def codebooks(self) -> Path:
        return self.root / "codebooks"

    @property
    def generations(self) -> Path:
        return self.root / "generations"

    def feature_source(self, view: str) -> Path:
        """Parquet source of one Feast view."""
        return self.root / "features" / view

    @property
    def published_sources(self) -> str:
        """Folder of the sources as the registry names it: other machines find it too."""
        return f"{self.location}/features"

    @property
    def training_sets(self) -> Path:
        return self.root / "training_sets"

    @property
    def models(self) -> Path:
        return self.root / "models"

    @property
    def releases(self) -> Path:
        return self.root / "releases"

    @property
    def reports(self) -> Path:
        return self.root / "reports"

    def require(self, path: Path, made_by: str) -> Path:
        """`path` if it exists, else an error that names the command that makes it."""
        if not path.exists():
            raise InputError(
                f"workspace {self.root} has no {path.relative_to(self.root)}; "
                f"run `crescendo {made_by}`"
            )
        return path
