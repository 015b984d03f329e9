"""imagen-upload: each image into the cloud, its object and its row."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import click

from ..command import Common, tool
from ..errors import ImagenError, UsageFault

if TYPE_CHECKING:
    from ..ledger import Ledger
    from ..pipe import Line
    from ..record import Record
    from ..upload import Image, Target

EXAMPLES = """
Examples:
  imagen-render 'a cat in a fishbowl' | imagen-upload | jq .cloud
  imagen-upload ~/Pictures/imagen/2026-11-23/*.png --signed-url 3600
  imagen-upload --retry-pending
"""


@tool("upload", epilog=EXAMPLES)
@click.argument("files", nargs=-1, metavar="[FILE]...")
@click.option(
    "--signed-url",
    type=click.IntRange(1, 31_536_000),
    metavar="S",
    help=("Add an address at which anybody may fetch it for S seconds."),
)
@click.option("--best-effort", is_flag=True, help="Only warn when it fails; the exit status is 0.")
@click.option("--dry-run", is_flag=True, help="Print object and row; send nothing.")
@click.option("--retry-pending", is_flag=True, help="Upload what earlier runs could not.")
@click.option("--repair", is_flag=True, help="List objects without rows, and rows without objects.")
@click.option("--apply", is_flag=True, help="With --repair: mend it from files here.")
def main(common: Common, files: tuple[str, ...], **said: Any) -> int:
    """Records (or image FILEs, whose sidecars are read) in; the same records with `cloud` out. What
    fails for now is kept in the ledger, and --retry-pending tries it again.
    """
    from .. import config, ledger

    _check(said, files)
    values = config.load(common.config_file)
    if said["best_effort"]:
        common.report.tool = "imagen: cloud sync"
    owner = values["supabase.owner_user_id"]
    if said["dry_run"]:
        return common.pipe.each(_source(files), lambda record: _dry(record, owner, values))
    target = _target(values)
    if said["repair"]:
        return _repair(common, target, values["output.dir"], said["apply"])
    kept = ledger.required(config.ledger_path())
    lines = _pending(kept) if said["retry_pending"] else _source(files)

    def step(record: Record) -> Iterable[Record] | None:
        if passes(record):
            return None
        return _uploaded(common, record, target, kept, said)

    return common.pipe.each(lines, step)


def passes(record: Record) -> bool:
    """Whether a record has no image to upload: failed, pending, or a sheet's."""
    others = ("error", "pending", "members")
    return any(name in record for name in others) or not isinstance(record.get("file"), str)


def _uploaded(
    common: Common, record: Record, target: Target, kept: Ledger, said: dict[str, Any]
) -> Iterator[Record]:
    from .. import pipe, upload

    try:
        image = upload.judged(record, target.owner)
        try:
            cloud = upload.upload(image, target)
        except ImagenError as fault:
            _keep(kept, image, fault)
            raise
        kept.uploads.done(image.record["render_id"])
        if said["signed_url"]:
            cloud["signed_url"] = target.bucket.signed_url(cloud["path"], said["signed_url"])
        yield {**record, "cloud": cloud}
    except ImagenError as fault:
        if not said["best_effort"]:
            raise
        common.report.fault(pipe.name_of(record, str(record["file"])), fault)
        yield record


def _keep(kept: Ledger, image: Image, fault: ImagenError) -> None:
    """Keep what may work later; what the record itself lacks would be lacking then too."""
    if fault.exit_status != 2:
        kept.uploads.keep(image.record, fault.as_record("imagen-upload"))


def _target(values: Any) -> Target:
    from .. import config, storage, supabase, upload

    name = values["supabase.service_key_env"]
    project = supabase.Project(values["supabase.url"], config.secret(name), name)
    return upload.Target(
        supabase.Tables(project, values["supabase.schema"]),
        storage.Bucket(project, values["supabase.bucket"]),
        values["supabase.owner_user_id"],
    )


def _dry(record: Record, owner: str | None, values: Any) -> Iterable[Record] | None:
    from .. import upload

    if passes(record):
        return None
    image = upload.judged(record, owner)
    upload.checked(image)
    bucket = values["supabase.bucket"]
    return [{"object": f"{bucket}/{image.path}", "row": upload.row_of(image, image.path)}]


def _repair(common: Common, target: Target, folder: Any, apply: bool) -> int:
    from .. import repair
    from ..errors import DONE, FAILED

    status = DONE
    for found in repair.differences(target, folder):
        if apply:
            repair.mend(found, target)
        common.pipe.write(found.as_record())
        status = status if found.mended else FAILED
    return status


def _pending(kept: Ledger) -> list[Line]:
    from ..pipe import Line

    return [Line(str(one.get("id")), record=one) for one in kept.uploads.kept()]


def _check(said: dict[str, Any], files: tuple[str, ...]) -> None:
    if said["repair"] and said["retry_pending"]:
        raise UsageFault("--repair and --retry-pending are two things")
    if files and (said["repair"] or said["retry_pending"]):
        raise UsageFault("--repair and --retry-pending take no files")
    if said["apply"] and not said["repair"]:
        raise UsageFault("--apply belongs to --repair")


def _source(files: tuple[str, ...]) -> Iterable[Line]:
    from pathlib import Path

    from .. import files as on_disk
    from .. import pipe
    from ..pipe import Line

    if files:
        return [Line(name, record=on_disk.record_of(Path(name))) for name in files]
    if not pipe.stdin_waits():
        raise UsageFault("no records", hint="imagen-render 'a cat' | imagen-upload")
    return pipe.read(sys.stdin.buffer)


if __name__ == "__main__":
    main()
