"""What the generated OpenAPI document says beyond the types: examples and problem documents."""

from collections.abc import Mapping

from litestar.openapi.config import OpenAPIConfig
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.plugins import SwaggerRenderPlugin
from litestar.openapi.spec import Contact, Example, License

from service.problems import MEDIA_TYPE
from service.schema import GenerateResponse, Problem

SAMPLE_CONTEXT = (
    "Bộ nhớ RAM là nơi máy tính giữ tạm chương trình và dữ liệu đang được xử lí. RAM có tốc độ "
    "đọc, ghi nhanh hơn ổ đĩa rất nhiều, nhưng nội dung của nó bị mất khi máy tắt nguồn."
)

_DESCRIPTION: Mapping[int, str] = {
    400: "The request is not as it must be; `errors` names the fields",
    401: "The admin token is missing or wrong",
    403: "Changes over HTTP are off",
    404: "No such adapter, version, alias or variant",
    409: "It does not fit: the adapter this base model, or the version what is demanded of it",
    410: "The version was deleted",
    412: "Moved meanwhile, or `If-Match` is missing",
    422: "The context cannot be asked about",
    502: "The model failed",
    503: "Busy or not ready; `Retry-After` says when to try again",
    504: "Nothing was ready in time",
}


def PROBLEM_RESPONSES(*statuses: int) -> Mapping[int, ResponseSpec]:  # noqa: N802 reads as a constant
    """Documented problem documents of a route."""
    return {
        status: ResponseSpec(
            data_container=Problem,
            generate_examples=False,
            description=_DESCRIPTION[status],
            media_type=MEDIA_TYPE,  # pyright: ignore[reportArgumentType] any string is written
        )
        for status in statuses
    }


GENERATE_RESPONSES: Mapping[int, ResponseSpec] = {
    200: ResponseSpec(
        data_container=GenerateResponse,
        generate_examples=False,
        description="Questions; as events with `Accept: text/event-stream`",
        examples=[
            Example(
                summary="One question",
                value={
                    "id": "gen_0f3a9c51d2e84b77",
                    "base_model": "embedded:qwen2.5-coder-1.5b-instruct",
                    "adapter": {"name": "mcq-vi", "version": 1, "digest": "sha256:…"},
                    "variant": "adapter",
                    "language": "vi",
                    "questions": [
                        {
                            "id": "q_5c1d7a90e2b34f68",
                            "question": "Điều gì xảy ra với nội dung của RAM khi máy tắt nguồn?",
                            "options": {
                                "A": "Được chép sang ổ đĩa",
                                "B": "Bị mất",
                                "C": "Được giữ nguyên",
                                "D": "Được nén lại",
                            },
                            "key": "B",
                            "evidence": {
                                "start": 77,
                                "end": 170,
                                "text": SAMPLE_CONTEXT[77:170],
                            },
                            "checks": [{"name": "key_is_longest", "passed": True, "detail": None}],
                        }
                    ],
                    "shortfall": 0,
                    "shortfall_reasons": {},
                    "usage": {
                        "prompt_tokens": 161,
                        "completion_tokens": 58,
                        "candidates": 1,
                        "seconds": 0.4,
                    },
                },
            )
        ],
    ),
    **PROBLEM_RESPONSES(400, 404, 409, 422, 502, 503, 504),
}

OPENAPI = OpenAPIConfig(
    title="TracNghiem",
    version="1",
    summary="Multiple-choice questions from a paragraph",
    description="Self-hosted: no text leaves the machine. Errors are RFC 9457 problem documents.",
    contact=Contact(name="TracNghiem"),
    license=License(name="Apache-2.0", identifier="Apache-2.0"),
    path="/schema",
    render_plugins=[SwaggerRenderPlugin()],
    use_handler_docstrings=True,
)
