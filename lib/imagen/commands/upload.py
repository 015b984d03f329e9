"""imagen-upload: each image into the cloud, its object and its row."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import click

from ..cli.tool import Common, tool
from ..errors import ImagenError, Refused, UsageFault

if TYPE_CHECKING:
    from ..cli.pipe import Line
    from ..cloud.upload import Image, Target
    from ..config.loader import Config
    from ..ledger import Ledger, Uploads
    from ..records.record import Record

EXAMPLES = """
Examples:
  imagen-render 'a cat in a fishbowl' | imagen-upload | jq .cloud
  imagen-upload --signed-url 3600 ~/Pictures/imagen/2026-11-23/*.png
  imagen-upload --signed-url 3600 0b7e4c1a-6d1f-5f0e-9a51-2f4f6f0c8b11
  imagen-upload --retry-pending
"""


@tool("upload", epilog=EXAMPLES, any_bytes=("files",))
@click.argument("files", nargs=-1, metavar="[FILE|ID]...")
@click.option(
    "--signed-url",
    type=click.IntRange(1, 31_536_000),
    metavar="S",
    help="Add an address at which anybody may fetch it for S seconds.",
)
@click.option("--best-effort", is_flag=True, help="Only warn when something fails.")
@click.option("--dry-run", is_flag=True, help="Print object and row; send nothing.")
@click.option("--retry-pending", is_flag=True, help="Upload what earlier runs could not.")
@click.option("--repair", is_flag=True, help="List objects without rows, and rows without objects.")
@click.option("--apply", is_flag=True, help="With --repair: mend it from the files here.")
def main(common: Common, files: tuple[str, ...], **said: Any) -> int:
    """Records (or image FILEs, whose sidecars are read) in; the same records with `cloud` out. What
    fails for now is kept in the ledger, and --retry-pending tries it again. With --signed-url, the
    ID of an image that is in the cloud is enough.
    """
    from ..config import loader

    _check(said, files)
    upload = Upload(common, loader.load(common.config_file), said)
    try:
        if said["repair"]:
            return upload.repair(said["apply"])
        lines = upload.pending() if said["retry_pending"] else _source(files)
        step = upload.dry if said["dry_run"] else upload.step
        common.pipe.goes_on = bool(files) or said["retry_pending"]
        return common.pipe.each(lines, upload.asked_for(step) if files else step)
    finally:
        upload.close()


def passes(record: Record) -> bool:
    """Whether a record is none of an image to upload: failed, pending, or a sheet's."""
    return any(name in record for name in ("error", "pending", "members"))


class Upload:
    """Brings records into the cloud; what fails is said, and kept when it may work later."""

    def __init__(self, common: Common, values: Config, said: dict[str, Any]) -> None:
        """Take where it goes; nothing is opened before the first record."""
        from ..cli.pipe import Report

        self._common = common
        self._values = values
        self._owner = values["supabase.owner_user_id"]
        self._seconds = said["signed_url"]
        self._again = said["retry_pending"]
        warns = Report("imagen: cloud sync", common.report.quiet, common.report.verbose)
        self._warns = warns if said["best_effort"] else None
        self._ledger: Ledger | None = None
        self._has_ledger = True
        self._at: Target | None = None

    def step(self, record: Record) -> Iterable[Record] | None:
        """Upload one; with --best-effort a failure is a warning."""
        return None if passes(record) else self._uploaded(record)

    def dry(self, record: Record) -> Iterable[Record] | None:
        """Give what would be sent."""
        from ..cloud import upload

        if passes(record):
            return None
        image = self._judged(record)
        upload.opened(image).close()
        bucket = self._values["supabase.bucket"]
        return [{"object": f"{bucket}/{image.path}", "row": upload.row_of(image, image.path)}]

    def asked_for(self, step: Any) -> Any:
        """Give the step for FILEs: to pass one on would say that it is safe in the cloud."""

        def checked(record: Record) -> Any:
            if "members" in record:
                raise Refused("a sheet is not uploaded", record=record)
            if "pending" in record:
                raise Refused("its record is not one of a finished image", record=record)
            return step(record)

        return checked

    def _uploaded(self, record: Record) -> Iterator[Record]:
        from ..cli import pipe
        from ..cloud import signing
        from ..errors import from_os

        made = record
        try:
            made = {**record, "cloud": self._in_cloud(record)}
            if self._seconds:
                url = signing.signed(made["cloud"]["path"], self._seconds, self._target())
                made["cloud"]["signed_url"] = url
        except (ImagenError, OSError) as fault:
            said = from_os(fault, "a file failed") if isinstance(fault, OSError) else fault
            if not self._warns:
                said.record = made
                raise said from None
            self._warns.fault(pipe.name_of(record, ""), said)
        yield made

    def _in_cloud(self, record: Record) -> Record:
        """Give where an image is in the cloud; it is brought there unless an address is enough."""
        from ..cloud import signing

        image_id = signing.image_id_of(record) if self._seconds and not self._again else None
        if image_id is None:
            return self._brought(self._judged(record))
        return signing.place_of(image_id, record.get("sha256"), self._target())

    def _judged(self, record: Record) -> Image:
        from pathlib import Path

        from ..cloud import upload

        if not isinstance(record.get("file"), str):
            raise Refused("no file: there is no image to upload")
        file = str(Path(record["file"]).absolute())  # --retry-pending runs in another folder
        return upload.judged({**record, "file": file}, self._owner)

    def _brought(self, image: Image) -> Record:
        """Bring one up. Whatever stops us once it is kept, --retry-pending goes on with it."""
        from ..cloud import upload

        try:
            stream = upload.opened(image)
        except upload.FileGone:
            return self._without_file(image)
        with stream:
            self._keep(image)
            try:
                cloud = upload.upload(image, stream, self._target())
            except upload.Different:
                self._forget(image)
                raise
            except ImagenError as fault:
                self._keep(image, fault)
                if self._has_ledger:
                    fault.hint = upload.kept_hint(fault)
                raise
        self._forget(image)
        return cloud

    def _without_file(self, image: Image) -> Record:
        """Finish what was begun, if only the row was lacking; else it can never be any more."""
        from ..cloud import upload

        if not self._again:
            upload.opened(image).close()
        cloud = upload.finished(image, self._target())
        is_gone = image.file.parent.is_dir()  # else a disk may not be mounted
        if cloud or is_gone:
            self._forget(image)
        if cloud:
            return cloud
        hint = "it is not tried again" if is_gone else "it is tried again when its folder is there"
        says = f"gone, or another now, before it was uploaded: {image.file}"
        raise upload.FileGone(says, hint=hint)

    def _keep(self, image: Image, fault: ImagenError | None = None) -> None:
        error = fault.as_record("imagen-upload") if fault else None
        record = {name: one for name, one in image.record.items() if name != "cloud"}
        self._noted(lambda kept: kept.keep(record, error))

    def _forget(self, image: Image) -> None:
        self._noted(lambda kept: kept.forget(image.record["render_id"]))

    def _noted(self, note: Callable[[Uploads], None]) -> None:
        """Note it in the ledger; an image goes up without one too, and a failure is said anyway."""
        if self._has_ledger:
            try:
                note(self._kept())
            except ImagenError as fault:
                self._has_ledger = False
                self._common.report.fault("nothing is kept for --retry-pending", fault)

    def _kept(self) -> Uploads:
        from .. import ledger
        from ..config import loader

        if self._ledger is None:
            self._ledger = ledger.required(loader.ledger_path())
        return self._ledger.uploads

    def _target(self) -> Target:
        from ..cloud import storage, supabase, upload
        from ..config import loader

        if self._at is None:
            values = self._values
            name = values["supabase.service_key_env"]
            project = supabase.Project(values["supabase.url"], loader.secret(name), name)
            self._at = upload.Target(
                supabase.Tables(project, values["supabase.schema"]),
                storage.Bucket(project, values["supabase.bucket"]),
            )
        return self._at

    def pending(self) -> list[Line]:
        """Give what is kept, as lines."""
        from ..cli.pipe import Line

        return [Line(str(one.get("id")), record=one) for one in self._kept().kept()]

    def repair(self, apply: bool) -> int:
        """List what is apart, and mend it; 1 when something stays apart."""
        from datetime import UTC, datetime

        from ..cloud import repair
        from ..errors import DONE, FAILED

        status, folder = DONE, self._values["output.dir"]
        for found in repair.differences(self._target(), folder, datetime.now(UTC)):
            if apply:
                repair.mend(found, self._target(), self._owner)
            self._common.pipe.write(found.as_record())
            status = status if found.mended else FAILED
        return status

    def close(self) -> None:
        """Close the connections."""
        if self._at:
            self._at.tables.close()
        if self._ledger:
            self._ledger.close()


def _check(said: dict[str, Any], files: tuple[str, ...]) -> None:
    if ids := [name for name in files if _is_id(name)]:
        if not said["signed_url"]:
            raise UsageFault(f"{ids[0]} is an image's id: --signed-url gives its address")
        if said["dry_run"]:
            raise UsageFault("an image's id has no --dry-run: there is nothing to upload")
    if said["repair"] and said["retry_pending"]:
        raise UsageFault("--repair and --retry-pending are two things")
    alone = [name for name in ("repair", "retry_pending") if said[name]]
    for name in alone:
        option = f"--{name.replace('_', '-')}"
        if files:
            raise UsageFault(f"{option} takes no files")
        if said["dry_run"]:
            raise UsageFault(
                f"{option} has no --dry-run", hint="--repair without --apply sends nothing"
            )
    if said["repair"] and said["signed_url"]:
        raise UsageFault("--repair signs nothing")
    if said["apply"] and not said["repair"]:
        raise UsageFault("--apply belongs to --repair")


def _is_id(name: str) -> bool:
    """Whether an argument is the id of an image in the cloud, not a file."""
    from pathlib import Path

    from ..records.record import canonical_uuid

    return canonical_uuid(name) is not None and not Path(name).exists()


def _record_of(name: str) -> Record:
    """Give the record of an image's FILE, or of an ID all that it says."""
    from pathlib import Path

    from ..files import sidecars
    from ..records.record import canonical_uuid

    if _is_id(name):
        return {"id": name, "cloud": {"image_id": canonical_uuid(name)}}
    return sidecars.record_of(Path(name))


def _source(files: tuple[str, ...]) -> Iterable[Line]:
    from ..cli import pipe

    if files:
        return (pipe.line_of_file(name, _record_of(name)) for name in files)
    if not pipe.stdin_waits():
        raise UsageFault("no records", hint="imagen-render 'a cat' | imagen-upload")
    return pipe.read(sys.stdin.buffer)


if __name__ == "__main__":
    main()
