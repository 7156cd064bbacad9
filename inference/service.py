"""A classifier behind HTTP: what is asked, what is answered, and what is refused.

A request's pictures are decoded by a few threads and computed by one, together with those of other
requests. Nothing is written to disk, and nothing that a request holds is taken for a path.
"""

from __future__ import annotations

import asyncio
import os
from base64 import b64decode
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi_offline import FastAPIOffline
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import FormParser, parse_options_header
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.requests import ClientDisconnect
from torch import Tensor

from dassl.errors import escaped, shown
from dassl.utils.tools import ImageError
from inference.batching import Batcher
from inference.classifier import Classifier, Prediction, prediction_of
from inference.output import NONE, answer, record_of

DECODERS = min(4, os.cpu_count() or 1)  # threads; each may hold a picture of INPUT.MAX_PIXELS
RETRY = {"Retry-After": "1"}  # seconds
JSON, FORM = "application/json", "multipart/form-data"


@dataclass(frozen=True)
class Limits:
    """How much is taken at once.

    Attributes:
        bytes: of a request.
        pictures: of a request.
        requests: that are worked on or waiting; more are refused with 503.
        seconds: for a request to arrive, and again for its answer.
        batch: pictures that are computed at once.
    """

    bytes: int = 16 * 2**20
    pictures: int = 32
    requests: int = 64
    seconds: float = 30
    batch: int = 32


# What is asked -----------------------------------------------------------------------------------


class Options(BaseModel):
    """What may be asked for, in the query or the body; the body has precedence."""

    model_config = ConfigDict(extra="forbid")
    top: int = Field(5, ge=1, description="number of classes to name for each picture")
    threshold: float = Field(
        0.0,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description=f'a picture is "{NONE}" where no class has this probability',
    )


class Pictures(Options):
    """A request in JSON."""

    images: list[str] = Field(min_length=1, description="files of pictures, each as base64 text")


# What is answered --------------------------------------------------------------------------------


class Share(BaseModel):
    label: str = Field(description="a class")
    probability: float


class Answer(BaseModel):
    image: str = Field(description='the name of the file, or "#0", "#1", ... by its place')
    label: str | None = Field(
        description=f'the most probable class, or "{NONE}"; null after an error'
    )
    probability: float | None = Field(description="that of the most probable class")
    top: list[Share] = Field(description="the most probable classes, the first of them first")
    error: str | None = Field(description="why this picture has no answer, in one line")


class Answers(BaseModel):
    predictions: list[Answer] = Field(description="one for each picture, in their order")


class Failure(BaseModel):
    error: str = Field(description="what is wrong, in one line")


class Health(BaseModel):
    status: str = Field(description='"ok"')
    method: str = Field(description="of the run, such as CoOp")
    backbone: str
    requests: int = Field(description="that are worked on or waiting")


class Classes(BaseModel):
    classes: list[str] = Field(description="the class names, in the order of the run")


FAILURES: dict[int | str, dict[str, Any]] = {
    400: {"model": Failure, "description": "no valid JSON or form, or cut off"},
    408: {"model": Failure, "description": "it took too long to arrive"},
    413: {"model": Failure, "description": "too many bytes or pictures"},
    415: {"model": Failure, "description": f"neither {JSON} nor {FORM}, or compressed"},
    422: {"model": Failure, "description": "a wrong field, or no picture that can be read"},
    500: {"model": Failure, "description": "a fault of the server"},
    503: {"model": Failure, "description": "too busy; try again after Retry-After seconds"},
}


def _form_schema() -> dict[str, Any]:
    files = {"type": "array", "items": {"type": "string", "format": "binary"}}
    fields = {"images": {**files, "description": "one or several files of pictures"}}
    fields |= Options.model_json_schema()["properties"]
    return {"type": "object", "required": ["images"], "properties": fields}


BODY = {
    "requestBody": {
        "required": True,
        "content": {
            FORM: {"schema": _form_schema()},
            JSON: {"schema": Pictures.model_json_schema()},
        },
    }
}

# Reading a request -------------------------------------------------------------------------------


async def received(request: Request, limit: int) -> bytes:
    """Return the body of a request; one of more bytes than the limit is not read to its end."""
    refused = HTTPException(413, f"request: expected at most {limit} bytes, got more")
    try:
        if int(request.headers.get("content-length", 0)) > limit:
            raise refused
    except ValueError:  # not a number, or one of thousands of digits
        raise HTTPException(400, "Content-Length: expected a number, got another") from None
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit:
                raise refused
    except ClientDisconnect:
        raise HTTPException(400, "request: expected its whole body, got less") from None
    return bytes(body)


def one_line(errors: Sequence[Any]) -> str:
    """Describe the first error that pydantic found."""
    error = errors[0]
    place = ".".join(str(part) for part in error["loc"] if part != "query") or "request"
    return escaped(f"{place}: {error['msg']}, got {shown(error['input'])}")


def from_json(body: bytes) -> tuple[list[tuple[str, str]], dict[str, Any]]:
    """Return the base64 texts of pictures, with their names, and the options that are set."""
    try:
        asked = Pictures.model_validate_json(body, strict=True)
    except ValidationError as error:
        found = error.errors(include_url=False)
        if found[0]["type"] == "json_invalid":
            raise HTTPException(400, escaped(f"request: {found[0]['msg']}")) from None
        raise HTTPException(422, one_line(found)) from None
    pictures = [(f"#{place}", text) for place, text in enumerate(asked.images)]
    return pictures, asked.model_dump(exclude={"images"}, exclude_unset=True)


def from_form(
    body: bytes, boundary: bytes | None, most: int
) -> tuple[list[tuple[str, bytes]], dict[str, Any]]:
    """Return the files of pictures, with their names, and the options that are set."""
    pictures: list[tuple[str, bytes]] = []
    fields: dict[str, str] = {}
    is_whole = False

    def add_file(file: Any) -> None:
        field = file.field_name.decode(errors="replace")
        if field != "images":
            raise HTTPException(422, escaped(f"{field}: expected images for files, got {field}"))
        if len(pictures) == most:
            raise _too_many(most)
        name = (file.file_name or b"").decode(errors="replace")
        file.file_object.seek(0)
        pictures.append((name or f"#{len(pictures)}", file.file_object.read()))

    def add_field(field: Any) -> None:
        name = field.field_name.decode(errors="replace")
        if name == "images":
            raise HTTPException(422, "images: expected files, got text; give each a filename")
        fields[name] = (field.value or b"").decode(errors="replace")

    def end() -> None:
        nonlocal is_whole
        is_whole = True

    memory = {"MAX_MEMORY_FILE_SIZE": len(body) + 1}  # files of more would be written to disk
    try:
        parser = FormParser(FORM, add_field, add_file, end, boundary, config=memory)
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise HTTPException(400, escaped(f"request: {' '.join(str(error).split())}")) from None
    if not is_whole:
        raise HTTPException(400, "request: expected a form that ends with its boundary, got less")
    if not pictures:
        raise HTTPException(422, "images: expected at least one file, got none")
    try:
        options = Options.model_validate(fields)
    except ValidationError as error:
        raise HTTPException(422, one_line(error.errors(include_url=False))) from None
    return pictures, options.model_dump(exclude_unset=True)


def _too_many(most: int) -> HTTPException:
    return HTTPException(413, f"images: expected at most {most}, got more")


# The service -------------------------------------------------------------------------------------


class Service:
    """Answers requests; made within an event loop, and closed when all of them are answered."""

    def __init__(self, classifier: Classifier, limits: Limits) -> None:
        self.classifier, self.limits = classifier, limits
        self.labels = classifier.labels
        self.requests = 0  # that are worked on or waiting; changed by the event loop alone
        self.threads = ThreadPoolExecutor(DECODERS, "decoder")
        self.batcher = Batcher(self.probabilities, limits.batch)

    def close(self) -> None:
        self.threads.shutdown()
        self.batcher.close()

    def probabilities(self, pictures: Tensor) -> Tensor:
        return self.classifier.probabilities(self.classifier.logits(pictures))

    async def answer(self, request: Request, query: Options) -> list[dict[str, Any]]:
        """Return the predictions of a request.

        Raises:
            HTTPException: it is refused.
        """
        if self.requests >= self.limits.requests:
            raise HTTPException(503, "the service is busy; try again", RETRY)
        self.requests += 1
        try:
            return await self._answer(request, query)
        finally:
            self.requests -= 1

    async def _answer(self, request: Request, query: Options) -> list[dict[str, Any]]:
        header = request.headers.get("content-type", "")
        kind, parameters = parse_options_header(header)
        if kind not in (JSON.encode(), FORM.encode()):
            raise HTTPException(
                415, escaped(f"Content-Type: expected {JSON} or {FORM}, got {shown(header)}")
            )
        encoding = request.headers.get("content-encoding", "identity")
        if encoding != "identity":
            raise HTTPException(
                415, escaped(f"Content-Encoding: expected none, got {shown(encoding)}")
            )
        seconds = self.limits.seconds
        try:
            body = await asyncio.wait_for(received(request, self.limits.bytes), seconds)
        except asyncio.TimeoutError:
            message = f"request: expected within {seconds:g} seconds, got less of it"
            raise HTTPException(408, message, {"Connection": "close"}) from None
        try:
            return await asyncio.wait_for(self._predict(kind, parameters, body, query), seconds)
        except asyncio.TimeoutError:
            message = f"the service is busy: no answer within {seconds:g} seconds; try again"
            raise HTTPException(503, message, RETRY) from None

    async def _predict(
        self, kind: bytes, parameters: dict[bytes, bytes], body: bytes, query: Options
    ) -> list[dict[str, Any]]:
        loop, most = asyncio.get_running_loop(), self.limits.pictures
        pictures: Sequence[tuple[str, str | bytes]]
        if kind == JSON.encode():
            pictures, fields = await loop.run_in_executor(self.threads, from_json, body)
        else:
            boundary = parameters.get(b"boundary")
            pictures, fields = await loop.run_in_executor(
                self.threads, from_form, body, boundary, most
            )
        if len(pictures) > most:
            raise _too_many(most)
        options = query.model_copy(update=fields)
        found = await asyncio.gather(*(self._one(*each, options) for each in pictures))
        errors = [each.error for each in found if each.error]
        if len(errors) == len(found):
            others = f" (nor can the other {len(found) - 1})" if len(found) > 1 else ""
            raise HTTPException(422, f"{errors[0]}{others}")
        return [record_of(each, answer(each, options.threshold)) for each in found]

    async def _one(self, name: str, source: str | bytes, options: Options) -> Prediction:
        loop = asyncio.get_running_loop()
        picture = await loop.run_in_executor(self.threads, self.decoded, name, source)
        if not isinstance(picture, Tensor):
            return Prediction(name, error=picture)
        row = await asyncio.wrap_future(self.batcher.submit(picture))
        return prediction_of(name, row, self.labels, min(options.top, len(self.labels)))

    def decoded(self, name: str, source: str | bytes) -> Tensor | str:
        """Return a picture as the model takes it, or why there is none."""
        try:
            data = b64decode(source, validate=True) if isinstance(source, str) else source
        except ValueError:
            return f"image '{name}': expected base64 text, got another"
        try:
            return self.classifier.preprocess(data, name)
        except ImageError as error:
            return str(error)


def build_app(classifier: Classifier, limits: Limits | None = None) -> FastAPI:
    """Return the application: POST /predict, GET /health, /classes, /docs and /openapi.json."""
    limits = limits or Limits()
    config = classifier.record.config
    service: Service

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        nonlocal service
        service = Service(classifier, limits)
        yield
        service.close()

    app = FastAPIOffline(
        redoc_url=None,
        title="Picture classifier",
        description=f"{config['TRAINER']['NAME']} around {config['MODEL']['BACKBONE']['NAME']}. "
        f"A request has at most {limits.pictures} pictures and {limits.bytes} bytes.",
        lifespan=lifespan,
    )

    @app.post(
        "/predict",
        summary="Classify pictures",
        description="A picture that cannot be read has an error in its entry; where none can, the "
        "answer is 422.",
        response_model=Answers,
        responses=FAILURES,
        openapi_extra=BODY,
    )
    async def predict(request: Request, query: Annotated[Options, Query()]) -> JSONResponse:
        return JSONResponse({"predictions": await service.answer(request, query)})

    @app.get("/health", summary="Say whether the service works")
    async def health() -> Health:
        return Health(
            status="ok",
            method=config["TRAINER"]["NAME"],
            backbone=config["MODEL"]["BACKBONE"]["NAME"],
            requests=service.requests,
        )

    @app.get("/classes", summary="Name the classes")
    async def classes() -> Classes:
        return Classes(classes=service.labels)

    def failure(status: int, message: str, headers: Any = None) -> JSONResponse:
        return JSONResponse({"error": message}, status, headers)

    @app.exception_handler(AnyHTTPException)
    async def refuse(request: Request, error: AnyHTTPException) -> JSONResponse:
        return failure(error.status_code, str(error.detail), error.headers)

    @app.exception_handler(RequestValidationError)
    async def refuse_query(request: Request, error: RequestValidationError) -> JSONResponse:
        return failure(422, one_line(error.errors()))

    @app.exception_handler(Exception)  # which is logged with its traceback, too
    async def report(request: Request, error: Exception) -> JSONResponse:
        return failure(500, "the service has failed; its log says why")

    return app
