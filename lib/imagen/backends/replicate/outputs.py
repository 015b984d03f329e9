"""The files of a prediction: fetched, told from what is no picture, and from what is gone."""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, unquote_to_bytes, urlsplit

from ...errors import BadImage, ImagenError, NotAnImage, OutOfCredit, Refused, Rejected, ServerFault
from ...images import codec
from .. import Raw
from .responses import Prediction

if TYPE_CHECKING:
    from ...http import Answer

RETENTION_S = 3600  # that Replicate keeps files, from the end of the prediction
_DEAD_S = 86400  # from which on a file that cannot be had for any reason is gone
MORE = 8  # files that are fetched beyond those that were planned
MOST_DATA = 64 * 2**20  # characters of a data: address
_GONE = (404, 410)
_SHOWN = 20  # addresses in a record
_LONGEST = 2000  # characters of one of them
_SUFFIXES = {
    "image/svg+xml": ".svg",
    "video/mp4": ".mp4",
    "video/webm": ".webm",
    "audio/mpeg": ".mp3",
    "audio/wav": ".wav",
    "application/zip": ".zip",
    "application/x-tar": ".tar",
    "application/json": ".json",
    "application/pdf": ".pdf",
    "model/gltf-binary": ".glb",
    "image/tiff": ".tif",
    "image/bmp": ".bmp",
    "text/html": ".html",
    "text/plain": ".txt",
}

Fetch = Callable[[str], "Answer"]


@dataclass(slots=True)
class Files:
    """What came of a prediction's files: images by their number in the submit, and the rest.

    `raw` is the first that is no picture; `unread` counts those and what could not be asked for;
    `not_fetched` counts the files beyond those that may be fetched.
    """

    images: dict[int, bytes] = field(default_factory=dict)
    faults: list[ImagenError] = field(default_factory=list)
    raw: Raw | None = None
    unread: int = 0
    gone: int = 0
    not_fetched: int = 0


def fetch_files(prediction: Prediction, fetch: Fetch, planned: int, wait_s: float) -> Files:
    """Fetch the files of a prediction that succeeded, each whatever becomes of the others.

    What is no picture is fetched once more after a wait: it may be a proxy's page for the moment.
    A file that is gone, or cannot be had now, keeps its number: the images after it have theirs.
    """
    files, number, most = Files(), 1, planned + MORE
    for address in prediction.outputs[:most]:
        try:
            data = _fetch_twice(address, fetch, wait_s)
        except ImagenError as fault:
            if _is_final(fault):
                files.unread += 1
                continue
            if _is_gone(prediction, fault):
                files.gone += 1
            else:
                files.faults.append(fault)
            number += 1
            continue
        if isinstance(data, Raw):
            files.raw = files.raw or data
            files.unread += 1
        else:
            files.images[number] = data
            number += 1
    files.not_fetched = max(len(prediction.outputs) - most, 0)
    if not prediction.outputs and prediction.output:
        files.raw = _text(prediction.output)
    return files


def _is_final(fault: ImagenError) -> bool:
    """Whether no server refused it: the address may not be asked, or what it has is too large."""
    return isinstance(fault, (Refused, Rejected, ServerFault)) and not getattr(fault, "status", 0)


def _is_gone(prediction: Prediction, fault: ImagenError) -> bool:
    """Whether a file will not come any more: 404, or refused once the provider keeps it no longer.

    Whatever else keeps a file back for a day after that is final too.
    """
    if isinstance(fault, (Rejected, OutOfCredit)):
        if getattr(fault, "status", 0) in _GONE or _is_over(prediction, RETENTION_S):
            return True
        fault.retry = "safe"  # whoever asks again may be let in
    return _is_over(prediction, _DEAD_S)


def _is_over(prediction: Prediction, seconds: float) -> bool:
    """Whether so long has passed since the prediction's end, on the server's own clock."""
    if prediction.data_removed:
        return True
    return None not in (prediction.now, prediction.completed) and (
        (prediction.now or 0) - (prediction.completed or 0) > seconds
    )


def _fetch_twice(address: str, fetch: Fetch, wait_s: float) -> bytes | Raw:
    """Return an image's bytes, or what is there instead, which is asked for twice."""
    if _is_data(address):
        data = decode(address)
        if data is None:
            raise Rejected("the data: address is too long or not base64")
        return _content_of(data, address, address[5 : address.index(",")])
    for again in (False, True):
        try:
            answer = fetch(address)
            content = _content_of(answer.body, address, answer.headers.get("Content-Type", ""))
        except (BadImage, Rejected) as fault:
            if again or (isinstance(fault, Rejected) and fault.status):
                raise
        else:
            if again or isinstance(content, bytes):
                return content
        time.sleep(wait_s)
    raise AssertionError("the second try ends it")


def _content_of(body: bytes, address: str, media_type: str) -> bytes | Raw:
    """Return the bytes of an image as they are; BadImage when a server cut them short."""
    if codec.is_cut(body):
        try:
            codec.probe(body)  # a JPEG may lack its last bytes
            return body
        except BadImage:
            if not _is_data(address):
                raise
    elif codec.kind(body):
        return body
    return Raw(body, suffix_of(address, media_type))


def no_picture(prediction: Prediction, files: Files) -> NotAnImage | None:
    """Return the error of a prediction that made something, and no picture."""
    if files.images or files.faults or files.gone or not prediction.output:
        return None
    if not prediction.outputs:
        return NotAnImage("the model returned no file, only text or values")
    hint = "backend_meta.outputs has its addresses"
    says = f"{files.raw.suffix[1:]}, {len(files.raw.data)} bytes" if files.raw else "not fetched"
    return NotAnImage(f"the model returned no picture: {says}", hint=hint)


def shorten(outputs: Sequence[str], hide: Callable[[str], str]) -> list[str]:
    """Return the addresses as a record has them: the first ones, without the bytes of data:."""
    return [_shortened(hide(address)) for address in outputs[:_SHOWN]]


def _shortened(address: str) -> str:
    if _is_data(address):
        head, _, data = address.partition(",")
        return f"{head},… ({len(data)} characters)"
    return address if len(address) <= _LONGEST else f"{address[:_LONGEST]}…"


# -- data: addresses -------------------------------------------------------------------------------


def decode(address: str) -> bytes | None:
    """Return what a data: address holds; None when it is too long, or not the base64 it claims."""
    head, _, text = address.partition(",")
    if len(text) > MOST_DATA:
        return None
    if not head.lower().rstrip().endswith(";base64"):
        return unquote_to_bytes(text)
    plain = re.sub(r"[\s=]", "", unquote(text) if "%" in text else text)
    plain = plain.replace("-", "+").replace("_", "/")  # as in the names of files
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except ValueError:
        return None


def _is_data(address: str) -> bool:
    return address[:5].lower() == "data:"


def suffix_of(address: str, media_type: str) -> str:
    """Return how the name of a file ends: only what is known, since a server says it."""
    plain = media_type.partition(";")[0].strip().lower()
    if plain in _SUFFIXES:
        return _SUFFIXES[plain]
    path = "" if _is_data(address) else urlsplit(address).path
    ending = re.search(r"\.[a-z0-9]{2,4}$", path.lower())
    return ending[0] if ending and ending[0] in _SUFFIXES.values() else ".bin"


def _text(output: Any) -> Raw:
    """Return an output without any file as a file: its text, or its JSON."""
    if isinstance(output, list) and all(isinstance(one, str) for one in output):
        output = "".join(output)  # as language models give it, word by word
    if isinstance(output, str):
        return Raw(output.encode(errors="replace"), ".txt")
    return Raw(json.dumps(output, ensure_ascii=True).encode(), ".json")


def meta_of(files: Files, addresses: Sequence[str]) -> dict[str, Any]:
    """Return what a record says of the outputs that did not become its images."""
    more: dict[str, Any] = {"outputs": [*addresses]} if files.unread or files.not_fetched else {}
    return more | ({"outputs_left": files.not_fetched} if files.not_fetched else {})
