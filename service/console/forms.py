"""What a browser sends, read with bounds."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import parse_qsl

from starlette.exceptions import HTTPException
from starlette.requests import Request

MAX_FORM_BYTES = 256 << 10  # a policy of 45 KiB, each byte written as three, and room for what else a form has
MAX_FIELDS = 200  # a fine-tune has some thirty
TOO_LARGE, BAD_REQUEST, WRONG_TYPE = 413, 400, 415


async def read_form(request: Request) -> Mapping[str, str]:
    """The fields of a form, `application/x-www-form-urlencoded`; of one that comes twice the last.

    Raises:
        HTTPException: 413, it is too long; 400, it cannot be read; 415, it is no such form.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/x-www-form-urlencoded":
        raise HTTPException(WRONG_TYPE, "not a form")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_FORM_BYTES:
            raise HTTPException(TOO_LARGE, f"a form of more than {MAX_FORM_BYTES} bytes")
    try:
        return dict(parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=MAX_FIELDS, errors="strict"))
    except ValueError as error:
        raise HTTPException(BAD_REQUEST, "the form cannot be read") from error
