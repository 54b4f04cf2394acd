"""`GET /`: the teacher's page, three static files with a strict content security policy."""

from pathlib import Path

from litestar import MediaType, Response, Router, get

_FOLDER = Path(__file__).parent.parent / "page"
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
_FILES = {
    "index.html": "text/html; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
}


def page_router() -> Router:
    """Routes of the page; the files are read once."""
    contents = {name: (_FOLDER / name).read_bytes() for name in _FILES}

    def answer(name: str) -> Response[bytes]:
        headers = {**_HEADERS, "Content-Type": _FILES[name]}
        return Response(contents[name], headers=headers, media_type=MediaType.TEXT)

    @get("/", include_in_schema=False, sync_to_thread=False)
    def index() -> Response[bytes]:
        return answer("index.html")

    @get("/page.js", include_in_schema=False, sync_to_thread=False)
    def script() -> Response[bytes]:
        return answer("page.js")

    @get("/page.css", include_in_schema=False, sync_to_thread=False)
    def style() -> Response[bytes]:
        return answer("page.css")

    return Router(path="/", route_handlers=[index, script, style])
