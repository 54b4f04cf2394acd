"""`GET /` and `GET /registry`: static pages with a strict content security policy."""

from pathlib import Path

from litestar import MediaType, Response, Router, get
from litestar.handlers import HTTPRouteHandler

_FOLDER = Path(__file__).parent.parent / "page"
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
_KINDS = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}
_PAGES = {"/": "index.html", "/registry": "registry.html"}


def page_router() -> Router:
    """Routes of both pages and of what they load; the files are read once."""
    paths = _PAGES | {f"/{f.name}": f.name for f in _FOLDER.iterdir() if f.suffix != ".html"}
    return Router(path="/", route_handlers=[_route(path, _FOLDER / paths[path]) for path in paths])


def _route(path: str, file: Path) -> HTTPRouteHandler:
    content = file.read_bytes()
    headers = {**_HEADERS, "Content-Type": f"{_KINDS[file.suffix]}; charset=utf-8"}

    @get(path, include_in_schema=False, sync_to_thread=False)
    def answer() -> Response[bytes]:
        return Response(content, headers=headers, media_type=MediaType.TEXT)

    return answer
