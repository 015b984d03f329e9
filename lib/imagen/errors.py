"""The error family: what failed, whether money left, and whether the same thing may be run again.

The first line of a class's docstring is its message when none is given. `code` is stable and
machine-readable; `retry` is one of safe (run it again), after (run it again after a wait),
never (change something first), reconcile (money may have left: look before running again).
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping
from typing import Any

DONE, FAILED, REFUSED, TEMPORARY = 0, 1, 2, 75
INTERRUPTED = (130, 143)
_BADNESS = [DONE, TEMPORARY, FAILED, REFUSED, 130, 143]


def worse(one: int, other: int) -> int:
    """The worse of two exit statuses, in the order 130/143, 2, 1, 75, 0."""
    return max(one, other, key=_BADNESS.index)


class ImagenError(Exception):
    """Something failed"""

    code = "failed"
    billed = "no"
    retry = "never"
    hint: str | None = None
    retry_after_s: float | None = None
    record: dict[str, Any] | None = None  # what the line had become when it failed
    scope: str | None = None  # "setup": of the machine, account or project, not of this request
    ends = False  # whether a render that was submitted is over by it; else it can be taken up again

    def __init__(self, message: str = "", **facts: Any) -> None:
        """Take a message for the person at the terminal, and any of the class's own attributes."""
        message = message or (type(self).__doc__ or "").partition("\n")[0]
        self.message = as_unicode(message)  # a server may say anything, a file be named so
        for name, value in facts.items():
            setattr(self, name, value)
        super().__init__(self.message)

    @classmethod
    def of_record(cls, error: Mapping[str, Any], record: dict[str, Any]) -> ImagenError:
        """Give the error that a record's `error` object was made of, about this record."""
        names = ("code", "hint", "billed", "retry", "retry_after_s", "scope")
        facts = {name: error[name] for name in names if error.get(name) is not None}
        return cls(error["message"], record=record, **facts)

    @property
    def exit_status(self) -> int:
        """75 when running the same thing again may help and pays nothing twice, else 1."""
        return TEMPORARY if self.retry in ("safe", "after") else FAILED

    def as_record(self, tool: str) -> dict[str, Any]:
        """Give the record's `error` object (docs/reference/record.md)."""
        found = {
            "tool": tool,
            "code": self.code,
            "message": self.message,
            "hint": self.hint,
            "billed": self.billed,
            "retry": self.retry,
            "retry_after_s": self.retry_after_s,
            "scope": self.scope,
        }
        return {key: value for key, value in found.items() if value is not None}

    def as_line(self) -> str:
        """Give the text for the terminal, with its hint."""
        return f"{self.message} (hint: {self.hint})" if self.hint else self.message


NO_UTF_8 = "the path is not UTF-8, so no record can hold it"


class Refused(ImagenError):
    """The request must be changed; nothing was sent"""

    code = "bad_request"
    exit_status = REFUSED


class UsageFault(Refused):
    """The command line cannot be used as it is"""

    code = "usage"


class ConfigFault(Refused):
    """The configuration cannot be used as it is"""

    code = "config"


class BadLine(Refused):
    """The line is not a JSON object"""

    code = "bad_line"


class WorkflowFault(Refused):
    """The workflow cannot be used as it is"""

    code = "bad_workflow"


class NotFaithful(Refused):
    """The backend would approximate or drop part of the request"""

    code = "not_faithful"
    hint = "run without --strict to accept it"


class FileFault(ImagenError):
    """A file could not be written or read; there may be room later"""

    code = "file"
    retry = "safe"


class OutputFault(ImagenError):
    """The records could not be written to stdout"""

    code = "stdout"


class OutputTaken(Refused):
    """The output file exists"""

    code = "output_exists"
    hint = "give another name, or --force to replace it"


class Unreachable(ImagenError):
    """The server cannot be reached"""

    code = "unreachable"
    retry = "safe"


class AnswerLost(ImagenError):
    """The connection broke after the request was sent; whether it arrived is unknown"""

    code = "answer_lost"
    retry = "safe"


class InDoubt(AnswerLost):
    """Whether the render arrived cannot be told"""

    billed = "unknown"
    retry = "after"


class ServerFault(ImagenError):
    """The server failed"""

    code = "server_fault"
    retry = "safe"
    status = 0  # of the answer, where there was one; so are `body` and `headers`
    body = b""
    headers: Mapping[str, str] = {}


class Rejected(ImagenError):
    """The server refused the request"""

    code = "rejected"
    status = 0
    body = b""
    headers: Mapping[str, str] = {}


class Unauthorized(ImagenError):
    """The server does not accept the token or the key"""

    code = "unauthorized"
    status = 401
    body = b""
    headers: Mapping[str, str] = {}


class Throttled(ImagenError):
    """The server asks to wait"""

    code = "rate_limited"
    retry = "after"
    status = 0
    body = b""
    headers: Mapping[str, str] = {}


class OutOfCredit(ImagenError):
    """The account is out of credit"""

    code = "out_of_credit"
    scope = "setup"
    status = 0
    body = b""
    headers: Mapping[str, str] = {}


class MissingModel(ImagenError):
    """The server does not have a model file that the workflow names"""

    code = "missing_model"
    scope = "setup"
    files: Iterable[str] = ()
    hint = "docs/guide/comfyui.md says where it belongs"


class ServerTooOld(ImagenError):
    """The server is too old for imagen"""

    code = "server_too_old"
    scope = "setup"
    hint = "update ComfyUI to 0.3.45 or later; if it is, one of its custom nodes replaces /prompt"


class RenderFailed(ImagenError):
    """The backend could not make the image"""

    code = "render_failed"
    ends = True


class RenderLost(ImagenError):
    """The backend no longer knows the render"""

    code = "render_lost"
    retry = "safe"
    finished = False  # whether it was made, and only its image is gone
    ends = True


class PaidFileGone(ImagenError):
    """It was paid and made, but its file is gone here and at the provider"""

    code = "paid_file_gone"
    billed = "yes"
    ends = True
    hint = "--again pays for a new one"


class GivenUp(ImagenError):
    """Given up for a new one (--again); whether it was paid nobody knows"""

    code = "given_up"
    billed = "unknown"


class IdTaken(Refused):
    """This id belongs to another request"""

    code = "id_taken"
    hint = "give another id, or --again for a new one"


class TimedOut(ImagenError):
    """The render took longer than the time-out"""

    code = "timeout"
    retry = "safe"
    hint = "--timeout S allows more time; --wait S hands out the unfinished record instead"
    ends = True


class BadImage(ImagenError):
    """What the backend returned is not the image that was asked for"""

    code = "bad_image"
    retry = "safe"
    whole = False  # whether no byte is missing: then asking for it again would bring the same


class NotAnImage(ImagenError):
    """The backend returned no readable image"""

    code = "not_an_image"
    ends = True


class TooFewImages(ImagenError):
    """The backend returned fewer images than asked"""

    code = "too_few_images"
    ends = True


class Interrupted(ImagenError):
    """Interrupted; our own render was cancelled"""

    code = "interrupted"
    retry = "safe"
    ends = True
    stopped: BaseException | None = None  # the signal, raised again once the record is out


class Fault(ImagenError):
    """A fault in imagen itself"""

    code = "internal"
    hint = "set IMAGEN_TRACEBACK=1 to see where, and report it"

    @classmethod
    def of(cls, fault: BaseException) -> Fault:
        """Name what went wrong in one line."""
        return cls(f"a fault in imagen itself: {type(fault).__name__}: {fault}"[:500])


class PreviewFault(ImagenError):
    """The preview could not be opened"""

    code = "preview"


class Stopped(BaseException):
    """A signal asked the process to end; `status` is 130 (INT) or 143 (TERM).

    Whoever catches it says that it is `heeded`: one that goes away without was lost on its way.
    """

    heeded = False

    def __init__(self, status: int) -> None:
        """Take the exit status."""
        self.status = status
        super().__init__(status)


class ReaderGone(BaseException):
    """Nobody reads our output any more (`| head -1`): end quietly."""


def as_unicode(text: str) -> str:
    """Return text that UTF-8 can hold; bytes that came from outside are shown as in \\xe9."""
    try:
        return text.encode(errors="surrogateescape").decode(errors="backslashreplace")
    except UnicodeEncodeError:  # half of a surrogate pair, of JSON
        return text.encode(errors="replace").decode()


def suggest(word: str, known: Iterable[str]) -> str | None:
    """Give a hint naming the close matches of `word`, or all that is known when few are."""
    from difflib import get_close_matches

    names = sorted(known)
    close = get_close_matches(word[:100], names, n=3, cutoff=0.6)  # a long one takes long
    if close:
        return "did you mean " + " or ".join(close) + "?"
    return "known: " + ", ".join(names) if 0 < len(names) <= 12 else None


def from_os(fault: OSError, doing: str) -> ImagenError:
    """Turn the operating system's error into ours, saying what we were `doing`."""
    where = f": {fault.filename}" if fault.filename else ""
    message = f"{doing}: {fault.strerror or fault}{where}"
    hint = _OS_HINTS.get(fault.errno or 0)
    if fault.errno in _FULL:
        return FileFault(message, hint=hint)
    return Refused(message, code=FileFault.code, hint=hint)


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE)
_OS_HINTS = {
    errno.ENOSPC: "free some space, or choose another place with --out-dir",
    errno.EACCES: "choose a folder that you may write to with --out-dir",
    errno.EROFS: "the file system is read-only: choose another place with --out-dir",
    errno.ENOTDIR: "a file stands where a folder should be: choose another place with --out-dir",
    errno.EEXIST: "a file stands where a folder should be: choose another place with --out-dir",
    errno.ENAMETOOLONG: "choose a shorter name",
}
