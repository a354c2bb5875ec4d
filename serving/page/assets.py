"""The page's own files: GET / and GET /page/{name}.

Plain HTML, CSS and JavaScript modules as they lie in this folder; no build step, nothing from
elsewhere. The policy that goes with them lets the browser run and load only what this server
sends, so that a title with markup in it stays text even where a line of ours forgot to.
"""

from pathlib import Path

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse

FOLDER = Path(__file__).parent
MEDIA_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    # blob: audio that was fetched with a token, which an <audio> element cannot send itself.
    "media-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # After an update of the server no page runs with modules of two versions.
    "Cache-Control": "no-cache",
}


def asset_router() -> APIRouter:
    """Holds the files in memory: no path of a request reaches the disk."""
    router = APIRouter(include_in_schema=False)
    index = (FOLDER / "index.html").read_text()
    files = {
        path.name: (path.read_text(), MEDIA_TYPES[path.suffix])
        for path in FOLDER.iterdir()
        if path.suffix in MEDIA_TYPES
    }

    @router.get("/")
    async def get_index() -> Response:
        return Response(index, media_type="text/html", headers=HEADERS)

    @router.get("/page/{name}")
    async def get_file(name: str) -> Response:
        if name not in files:
            return JSONResponse({"error": "the page has no such file"}, 404, headers=HEADERS)
        text, media_type = files[name]
        return Response(text, media_type=media_type, headers=HEADERS)

    return router
