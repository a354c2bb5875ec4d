"""The releases that this process serves, changed under load without a failed request.

    releases = LiveReleases(workspace, load)      # load(release) -> ReleaseRanker
    releases.start()                              # ArtifactError: the live release does not load
    ranker = releases.for_user(user_id)           # take one and keep it for the whole request
    releases.compare(user_id, ranker, ranking)    # with the shadow, once it is answered
    releases.stop()

A thread looks at `releases/CURRENT`, `CANARY` and `SHADOW` (`releases.py`). A release that is new
there is loaded beside the old one, warmed up and checked against the scores of its training
(`warm_up.py`), and then takes its place by one assignment: a request sees the old or the new one,
never parts of both. The old one is freed when its last request ends. What that costs: the memory
of one release more during a load, which takes one core from the rankings meanwhile.

A live release that does not load or scores otherwise leaves the old one serving; a canary's users
then get the live release, and nothing is compared with a shadow. `status` says so, and it is tried
again when its file is written again (`crescendo release`, `rollback`, ...).
"""

import gc
import logging
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from feature_repo.errors import InputError
from feature_repo.workspace import Workspace
from serving.background import give_way
from serving.ranker import Ranking, ReleaseRanker
from serving.releases import (
    CANARY,
    CURRENT,
    SHADOW,
    Canary,
    Release,
    live_release,
    read_canary,
    read_release,
    shadow_release_id,
)
from serving.shadow import ShadowScorer
from serving.warm_up import check_warm_up

logger = logging.getLogger(__name__)

Mark = tuple[int, int, int] | None
"""Changes whenever a file is replaced, also by equal content: inode, time in ns, bytes."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Loaded:
    """What serves at one moment: replaced as a whole."""

    live: ReleaseRanker
    canary: tuple[Canary, ReleaseRanker] | None = None
    shadow: ShadowScorer | None = None
    """Its ranker is nobody else's: the shadow's thread may be using it."""


class LiveReleases:
    """The rankers of the live release, of its canary and of its shadow.

    `load` builds a ranker, which is warmed up and checked here. It is called in a thread of its
    own, never twice at once, and may raise anything.
    """

    def __init__(
        self,
        workspace: Workspace,
        load: Callable[[Release], ReleaseRanker],
        *,
        poll_s: float = 1.0,
    ) -> None:
        self._workspace, self._load_ranker, self._poll_s = workspace, load, poll_s
        self._loaded: _Loaded
        self._marks: dict[str, Mark] = dict.fromkeys((CURRENT, CANARY, SHADOW))
        self._problems: dict[str, str] = {}
        """By file, the newest last; without paths, as they are shown to clients."""
        self._loading: str | None = None
        self._loads = self._failures = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="live-releases", daemon=True)

    def start(self) -> None:
        """Loads what the files name and begins to watch them. Raises what the live one raises.

        Canary and shadow do not stop a start: `status` says what is wrong with them.
        """
        self._marks[CURRENT] = _mark(self._workspace.releases / CURRENT)
        release = live_release(self._workspace)
        self._loaded = _Loaded(live=self._load(release))
        logger.info("release %s is live", release.release_id)
        self.look()
        _settle_memory()
        self._thread.start()

    def stop(self) -> None:
        """Ends the watching; a load that is under way is waited for. Rankers stay usable."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def current(self) -> ReleaseRanker:
        """The live release's ranker."""
        return self._loaded.live

    @property
    def shadow(self) -> ReleaseRanker | None:
        scorer = self._loaded.shadow
        return None if scorer is None else scorer.ranker

    def rankers(self) -> list[ReleaseRanker]:
        """All that serve here: the live release's first, then the canary's, then the shadow's."""
        loaded = self._loaded
        rankers = [loaded.live]
        if loaded.canary is not None:
            rankers.append(loaded.canary[1])
        if loaded.shadow is not None:
            rankers.append(loaded.shadow.ranker)
        return rankers

    def for_user(self, user_id: int) -> ReleaseRanker:
        """The canary's ranker for its share of the users, else the live release's."""
        loaded = self._loaded
        if loaded.canary is not None:
            canary, ranker = loaded.canary
            if canary.takes(user_id):
                return ranker
        return loaded.live

    def compare(self, user_id: int, ranker: ReleaseRanker, ranking: Ranking) -> None:
        """Offers an answer to the shadow, if one runs and the live release gave the answer.

        Called on the event loop after the ranking; costs the answer microseconds.
        """
        loaded = self._loaded
        if loaded.shadow is not None and ranker is loaded.live:
            loaded.shadow.offer(user_id, ranking)

    def status(self) -> dict[str, Any]:
        """What serves, and what is wrong, in words that clients may see (the log has the rest).

        `live`: release id. `canary`: release id and share; `shadow`: release id and comparison;
        None where there is none. `loading`: id of the release that is on its way, or None.
        `last_problem`: None where everything that the files name is served. `loads` and
        `failed_loads` count since the start.
        """
        loaded = self._loaded
        canary = shadow = None
        if loaded.canary is not None:
            canary = asdict(loaded.canary[0])
        if loaded.shadow is not None:
            shadow_id = loaded.shadow.ranker.release.release_id
            shadow = {"release_id": shadow_id, **loaded.shadow.summary()}
        problems = list(self._problems.values())
        return {
            "live": loaded.live.release.release_id,
            "canary": canary,
            "shadow": shadow,
            "loading": self._loading,
            "last_problem": problems[-1] if problems else None,
            "loads": self._loads,
            "failed_loads": self._failures,
        }

    def _watch(self) -> None:
        give_way()
        while not self._stopping.wait(self._poll_s):
            try:
                self.look()
            except Exception:
                # A disk that does not answer, say: what serves goes on, and so does this thread.
                logger.exception("releases of %s", self._workspace.root)

    def look(self) -> None:
        """Follows each file that was written or removed since the last look: the thread's work."""
        changes = {
            CURRENT: self._change_live,
            CANARY: self._change_canary,
            SHADOW: self._change_shadow,
        }
        for name, change in changes.items():
            # Before it is read: what is written in between is seen by the next look.
            mark = _mark(self._workspace.releases / name)
            if mark == self._marks[name]:
                continue
            self._marks[name] = mark
            self._problems.pop(name, None)
            try:
                change()
            except Exception as error:
                self._failures += 1
                self._say(name, error)

    def _change_live(self) -> None:
        ranker = self._ranker(live_release(self._workspace))
        if ranker is self._loaded.live:
            return
        self._loaded = replace(self._loaded, live=ranker)
        logger.info("release %s is live", ranker.release.release_id)
        _settle_memory()

    def _change_canary(self) -> None:
        try:
            canary = read_canary(self._workspace)
            loaded = None
            if canary is not None:
                release = read_release(self._workspace, canary.release_id)
                loaded = canary, self._ranker(release)
        except Exception:
            self._loaded = replace(self._loaded, canary=None)
            raise
        self._loaded = replace(self._loaded, canary=loaded)
        if canary is not None:
            logger.info("release %s is the canary of %s", canary.release_id, canary.share)
        _settle_memory()

    def _change_shadow(self) -> None:
        self._drop_shadow()
        release_id = shadow_release_id(self._workspace)
        if release_id is not None:
            ranker = self._load(read_release(self._workspace, release_id))
            self._loaded = replace(self._loaded, shadow=ShadowScorer(ranker))
            logger.info("release %s is the shadow", release_id)
        _settle_memory()

    def _drop_shadow(self) -> None:
        """Returns when its thread uses its ranker no more."""
        scorer = self._loaded.shadow
        if scorer is not None:
            self._loaded = replace(self._loaded, shadow=None)
            scorer.close()

    def _ranker(self, release: Release) -> ReleaseRanker:
        """Of a release that serves already, in whatever place, or of one that is loaded now."""
        for ranker in self.rankers():
            if ranker.release.release_id == release.release_id:
                if ranker is self.shadow:
                    self._drop_shadow()
                return ranker
        return self._load(release)

    def _load(self, release: Release) -> ReleaseRanker:
        self._loading = release.release_id
        try:
            ranker = self._load_ranker(release)
            ranker.warm_up()
            check_warm_up(self._workspace, ranker)
        finally:
            self._loading = None
        self._loads += 1
        return ranker

    def _say(self, name: str, error: Exception) -> None:
        """Once for each time that the file was written."""
        what = f"what releases/{name} names is not served"
        self._problems[name] = f"{what} ({type(error).__name__}): the log says why"
        known = isinstance(error, InputError)
        serving = self.current.release.release_id
        logger.error("%s, %s goes on: %s", what, serving, error, exc_info=None if known else error)


def _mark(path: Path) -> Mark:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def _settle_memory() -> None:
    """Takes what is held now out of the garbage collector's sight.

    A full collection would walk torch, Feast and the catalogue, and a request would wait for
    hundreds of milliseconds.
    """
    gc.collect()
    gc.freeze()
