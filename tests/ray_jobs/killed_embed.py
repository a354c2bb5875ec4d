"""An embedding run to be killed: embeds the audio of a workspace by the encoder of two stages.

RAY_ADDRESS=... python -m tests.ray_jobs.killed_embed WORKSPACE
"""

import sys
from pathlib import Path

from feature_repo.workspace import Workspace
from ray_jobs import embed as embed_module
from ray_jobs.embed import EmbedOptions, embed
from tests.ray_jobs.two_stage import BandEncoder

OPTIONS = EmbedOptions(modality="audio", encoder="spectral", batch_size=2, actors=1)

if __name__ == "__main__":
    workspace = Workspace(Path(sys.argv[1]))
    encoder = BandEncoder(root=workspace.root.absolute())
    embed_module.make_encoder = lambda *_: encoder
    embed(workspace, OPTIONS)
