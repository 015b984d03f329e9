"""What the bytes of an image tell undecoded: its format, and whether its end is there. Pure."""

from __future__ import annotations

_MAGIC = {
    "png": b"\x89PNG\r\n\x1a\n",
    "jpeg": b"\xff\xd8\xff",
    "webp": b"RIFF",
    "gif": b"GIF8",
    "avif": b"\0\0\0",
}
_SHORTEST = 12  # bytes from which a format can be told
_NO_LENGTH = {0x00, 0x01, *range(0xD0, 0xD9), 0xFF}  # JPEG markers that no length follows
_TAIL = 1024  # bytes in which the end of a PNG or a JPEG is looked for


def kind(data: bytes) -> str | None:
    """Return the format that the first bytes name; None when it is no image of ours."""
    for name, magic in _MAGIC.items():
        if data.startswith(magic) and _is_kind(name, data):
            return name
    return None


def _is_kind(name: str, data: bytes) -> bool:
    if name == "webp":
        return data[8:12] == b"WEBP"
    if name == "gif":
        return data[4:6] in (b"7a", b"9a")
    return name != "avif" or (data[4:8] == b"ftyp" and _is_avif(data))


def _is_avif(data: bytes) -> bool:
    """Whether one of the brands of the file is that of AVIF, still or moving."""
    end = min(int.from_bytes(data[:4]), 256)
    brands = [data[8:12], *(data[at : at + 4] for at in range(16, end, 4))]
    return b"avif" in brands or b"avis" in brands


def is_cut(data: bytes) -> bool:
    """Whether the bytes are the beginning of an image whose end is missing, as far as they tell."""
    form = kind(data)
    if form is None:
        return len(data) < _SHORTEST and any(
            data[: len(magic)] == magic[: len(data)] for magic in _MAGIC.values()
        )
    if form == "png":
        return b"IEND\xaeB`\x82" not in data[-_TAIL:] and not _ends_png(data)
    if form == "jpeg":
        return b"\xff\xd9" not in data[-_TAIL:] and not _ends_jpeg(data)
    if form == "webp":
        return int.from_bytes(data[4:8], "little") + 8 > len(data)
    return not _ends_gif(data) if form == "gif" else _is_cut_avif(data)


def _ends_png(data: bytes) -> bool:
    """Whether the chunks of a PNG lead to its last one, whatever comes after."""
    at = 8
    while at + 12 <= len(data):
        if data[at + 4 : at + 8] == b"IEND":
            return True
        at += 12 + int.from_bytes(data[at : at + 4])
    return False


def _ends_jpeg(data: bytes) -> bool:
    """Whether the segments of a JPEG and what is coded between them lead to its end marker."""
    at = 2
    while 0 <= (at := data.find(b"\xff", at)) < len(data) - 1:
        marker = data[at + 1]
        if marker == 0xD9:
            return True
        at += 1 if marker == 0xFF else 2
        if marker not in _NO_LENGTH:
            at += int.from_bytes(data[at : at + 2])
    return False


def _ends_gif(data: bytes) -> bool:
    """Whether the blocks of a GIF lead to its trailer."""
    at = 13 + _colours(data[10:11])
    while at < len(data):
        if data[at] == 0x3B:
            return True
        if data[at] == 0x21:  # an extension: its label, then parts
            at = _after_parts(data, at + 2)
        elif data[at] == 0x2C:  # a frame: its place and colours, the size of its codes, then parts
            at = _after_parts(data, at + 11 + _colours(data[at + 9 : at + 10]))
        else:
            return True  # broken, and not for want of bytes
    return False


def _colours(flags: bytes) -> int:
    """Return the length of the table of colours that the flags announce."""
    return 3 << ((flags[0] & 7) + 1) if flags and flags[0] & 0x80 else 0


def _after_parts(data: bytes, at: int) -> int:
    while at < len(data) and data[at]:
        at += data[at] + 1
    return at + 1


def _is_cut_avif(data: bytes) -> bool:
    """Whether an outermost box ends beyond the bytes, or the box of the pixels is not there."""
    at, names = 0, set()
    while at < len(data):
        length, least = int.from_bytes(data[at : at + 4]), 8
        names.add(data[at + 4 : at + 8])
        if length == 1:
            length, least = int.from_bytes(data[at + 8 : at + 16]), 16
        if at + 8 <= len(data) and not data[at + 4 : at + 8].isalnum():
            break  # no box: other bytes come after the image
        if length == 0 and len(data) >= at + least:  # it goes to the end of the file
            break
        at += max(length, least)
    return at > len(data) or not (b"mdat" in names or b"idat" in data)
