"""All routes of the page, for the application to include.

app.include_router(page_router(live))
"""

from fastapi import APIRouter

from serving.live_releases import LiveReleases
from serving.page.assets import asset_router
from serving.page.browse import browse_router
from serving.page.catalogue import Catalogue
from serving.page.loaded_files import LoadedFiles
from serving.page.why import why_router


def page_router(live: LiveReleases) -> APIRouter:
    """`live` is started. Everything under `/` and `/page/` is open: it holds nothing of the
    workspace, and somebody has to ask for the token that the other routes want."""
    workspace = live.current.workspace
    catalogue = LoadedFiles(workspace.tracks, lambda: Catalogue.load(workspace))
    router = APIRouter()
    router.include_router(asset_router())
    router.include_router(browse_router(workspace, live, catalogue))
    router.include_router(why_router(live, catalogue))
    return router
