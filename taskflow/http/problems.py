"""Errors over HTTP: RFC 9457 problem documents, each with a stable machine-readable `code`."""

from __future__ import annotations

import json
import math
from http import HTTPStatus
from typing import TYPE_CHECKING

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import Mapping

CONTENT_TYPE = "application/problem+json"

# What aiohttp itself refuses, and what we call it.
CODES = {
    HTTPStatus.BAD_REQUEST: "bad_request",
    HTTPStatus.UNAUTHORIZED: "unauthorized",
    HTTPStatus.NOT_FOUND: "not_found",
    HTTPStatus.METHOD_NOT_ALLOWED: "method_not_allowed",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "too_large",
    HTTPStatus.TOO_MANY_REQUESTS: "too_many_requests",
    HTTPStatus.INTERNAL_SERVER_ERROR: "internal_error",
    HTTPStatus.SERVICE_UNAVAILABLE: "unavailable",
}


def problem(
    status: int,
    detail: str,
    *,
    code: str | None = None,
    retry_after_s: float | None = None,
    headers: Mapping[str, str] | None = None,
) -> web.Response:
    """The document for `status`: `type`, `title`, `status`, `detail`, `code`, and `retry_after_s` where it helps.

    `detail` is for people and never repeats what the client sent; `code` is by status unless given.
    """
    document: dict[str, object] = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "code": code or CODES.get(HTTPStatus(status), "http_error"),
    }
    sent = {"Cache-Control": "no-store", **(headers or {})}
    if retry_after_s is not None:
        document["retry_after_s"] = retry_after_s
        sent["Retry-After"] = str(max(1, math.ceil(retry_after_s)))  # whole seconds, RFC 9110
    return web.Response(status=status, body=json.dumps(document).encode(), content_type=CONTENT_TYPE, headers=sent)
