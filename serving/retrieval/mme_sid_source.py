"""The retriever model of a release in the replica: tracks that a user is expected to hear next.

    source = MmeSidSource.load(workspace, release)
    if source.fits(left_s / 2):
        track_ids_N = source.nearest(user.track_ids_L, 200)

The decoder reads the user's last listens, its last state is the user's vector, and the tracks with
the largest inner products with it are found by Faiss in the model's cached item matrix. On CUDA
where there is a device, in bfloat16; else on one core, in float32.

What it may cost: a pass is part of the request's turn, so it holds up the ones behind it. A model
whose pass takes longer than LIVE_BUDGET_S here is refused when its release is loaded; a request
asks it only where its last passes took no more than half of the time that is left.

The search is exact: user vectors lie elsewhere than item vectors, so that Faiss's cells and graphs
find little of what counts (recall@200 0.22 by the cells of `vector_index` at 100,000 tracks of
width 256, random weights), and reading the whole matrix costs as much as a pass: 1.2 ms for 10,000
tracks, 12 ms for 100,000. A larger catalogue is for `crescendo score-users`.

Shape suffixes: I rows of items with the padding, V tracks, L listens, T of them that the model
reads, D width, N found tracks.
"""

import time
from typing import TYPE_CHECKING

import numpy as np
import torch

from feature_repo.errors import ArtifactError
from feature_repo.mme_sid_reader import MmeSidModel, read_mme_sid
from feature_repo.workspace import Workspace
from models.batch import find_rows
from serving.releases import Release
from serving.retrieval.vector_index import MOST_FOUND, THREADS, import_faiss, make_index

if TYPE_CHECKING:
    from models.mme_sid import MmeSid

LIVE_BUDGET_S = 0.05
"""Half of a request's default deadline."""
LIVE_CPU_BYTES = 1 << 31
"""Of weights, without a CUDA device: a model above would not answer in time, and is not read."""
WARM_UPS = 5
SMOOTHING = 0.1
FORGETTING = 0.02
"""Share of the way back to the warm-up's time that a slow estimate goes with each request that did
not ask: after a busy spell it is tried again."""


class MmeSidSource:
    """Used in one event loop only."""

    def __init__(
        self, model: "MmeSid", track_ids_I: np.ndarray, matrix_ID: np.ndarray, length: int
    ) -> None:
        """`track_ids_I` rising, row 0 the padding; `length`: listens that the model reads."""
        self._model, self._length = model, length
        self._device = model.items.frequency_I.device
        self.track_ids_V = track_ids_I[1:]
        self._faiss = import_faiss()
        self._faiss.omp_set_num_threads(THREADS)
        self._index = make_index(self._faiss, matrix_ID[1:].astype(np.float32), "flat")
        if self._faiss.get_num_gpus() > 0:
            resources = self._faiss.StandardGpuResources()
            self._index = self._faiss.index_cpu_to_gpu(resources, 0, self._index)
        self._fastest_s = self._expected_s = self._warm_up()

    @classmethod
    def load(cls, workspace: Workspace, release: Release) -> "MmeSidSource":
        """ArtifactError for a model that is missing, changed, or too slow for this machine."""
        from models.mme_sid import build  # brings torch's compiler, two seconds of the start

        assert release.retriever_model_id is not None
        read = read_mme_sid(workspace, release.retriever_model_id)
        check_same(read, release)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if device.type == "cpu" and read.weight_bytes > LIVE_CPU_BYTES:
            raise too_slow(release, f"has {read.weight_bytes:,} bytes of weights and no GPU")
        model = build(
            read.config,
            read.tensors(),
            read.base_tensors(),
            dtype=torch.float32 if device.type == "cpu" else torch.bfloat16,
            device=device,
        )
        source = cls(model, read.track_ids_I, read.item_matrix_ID, read.length)
        if source.cost_s > LIVE_BUDGET_S:
            raise too_slow(release, f"takes {1e3 * source.cost_s:.0f} ms for a user here")
        return source

    @property
    def cost_s(self) -> float:
        """What a request's pass and search took of late."""
        return self._expected_s

    def fits(self, budget_s: float) -> bool:
        """Whether `nearest` is expected to end within the budget."""
        if self._expected_s <= budget_s:
            return True
        self._expected_s += FORGETTING * (self._fastest_s - self._expected_s)
        return False

    def nearest(self, history_L: np.ndarray, count: int) -> np.ndarray:
        """At most `count` track ids (N,), best first, tracks of the history among them.

        Listens of tracks that the model does not know are left out; none for a user without any.
        """
        began = time.perf_counter()
        rows_L, known_L = find_rows(self.track_ids_V, history_L)
        rows_T = rows_L[known_L][-self._length :] + 1
        if not len(rows_T):
            return self.track_ids_V[:0]
        place_N = self.search(self.user_vector(rows_T), count)
        taken_s = time.perf_counter() - began
        self._expected_s += SMOOTHING * (taken_s - self._expected_s)
        return self.track_ids_V[place_N]

    @torch.inference_mode()
    def user_vector(self, rows_T: np.ndarray) -> np.ndarray:
        """float32 (D,): the state after the last of these item rows."""
        rows = torch.from_numpy(rows_T).to(self._device)
        vectors_1D = self._model.last_vectors(rows, torch.tensor([len(rows_T)]))
        vector_D: np.ndarray = vectors_1D[0].float().cpu().numpy()
        return vector_D

    def search(self, vector_D: np.ndarray, count: int) -> np.ndarray:
        """Places (N,) in `track_ids_V` of at most `count` tracks, by falling inner product."""
        self._faiss.omp_set_num_threads(THREADS)
        wanted = min(count, len(self.track_ids_V), MOST_FOUND)
        place_N: np.ndarray = self._index.search(vector_D[None], wanted)[1][0]
        return place_N[place_N >= 0]

    def _warm_up(self) -> float:
        """Seconds of the fastest of a few passes over a history of full length.

        Of the core's time, where a core is what runs: that other processes hold it up while a
        release is loaded is no reason to refuse the release.
        """
        clock = time.thread_time if self._device.type == "cpu" else time.perf_counter
        history_L = self.track_ids_V[np.arange(self._length) % len(self.track_ids_V)]
        self._expected_s = 0.0
        taken = []
        for _ in range(WARM_UPS):
            began = clock()
            self.nearest(history_L, 1)
            taken.append(clock() - began)
        return min(taken)


def check_same(read: MmeSidModel, release: Release) -> None:
    """ArtifactError where the model is not the one that the release was made with."""
    if read.sha256 != release.retriever_sha256:
        raise ArtifactError(
            f"retriever {release.retriever_model_id} was trained again since release "
            f"{release.release_id} was made; run `crescendo release` to serve the new weights"
        )


def too_slow(release: Release, why: str) -> ArtifactError:
    model_id = release.retriever_model_id
    return ArtifactError(
        f"retriever {model_id} {why}: it cannot be run within a request; run `crescendo "
        f"score-users --model-id {model_id}` and `crescendo release` again, which then reads what "
        "was scored"
    )
