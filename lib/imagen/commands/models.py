"""imagen-models: the model files of workflows: which there are, fetching them, verifying them."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from ..cli.tool import Common, tool
from ..errors import ConfigFault, ImagenError, Refused, UsageFault

if TYPE_CHECKING:
    from pathlib import Path

    from ..cli.pipe import Report
    from ..config.loader import Config
    from ..models.files import Place, Tell
    from ..models.source import Hub
    from ..workflows.template import Model

EXAMPLES = """
Examples:
  imagen-models list flux1-schnell | jq -r .file
  imagen-models fetch flux1-schnell --models-dir ~/ComfyUI/models
  imagen-models verify flux1-schnell --models-dir ~/ComfyUI/models
"""
SHOWN = ("workflow", "folder", "file", "size", "licence", "state")


class Wanted(NamedTuple):
    """A model file, the workflow that wants it, and where it stands or will (None: not looked)."""

    workflow: str
    model: Model
    place: Place | None


@tool("models", epilog=EXAMPLES, any_bytes=("workflows",))
@click.argument("what", type=click.Choice(["list", "fetch", "verify"]))
@click.argument("workflows", nargs=-1, metavar="[WORKFLOW]...")
@click.option("--models-dir", metavar="DIR", help="ComfyUI's models, over $IMAGEN_MODELS_DIR.")
@click.option("--backend", metavar="NAME", help="The workflow and the files of this backend.")
@click.option("--option", "options", multiple=True, metavar="K=V", help="As for imagen-render.")
@click.option("--dry-run", is_flag=True, help="Print what fetch would fetch, and from where.")
def main(
    common: Common,
    what: str,
    workflows: tuple[str, ...],
    models_dir: str | None,
    backend: str | None,
    options: tuple[str, ...],
    dry_run: bool,
) -> int:
    """WORKFLOW is a bundled name or a file; list and verify without one take all that are bundled.
    list shows each file, fetch downloads those that are not there, verify compares size and sha256.
    A broken download goes on where it stopped, and no file is ever overwritten.
    """
    from ..cli import render_options as of_render
    from ..config import loader
    from ..models.source import Hub

    if dry_run and what != "fetch":
        raise UsageFault(f"{what} takes no --dry-run")
    if what == "fetch" and not (workflows or backend):
        raise UsageFault("fetch takes a workflow", hint="imagen-models list shows the bundled ones")
    values = loader.load(common.config_file)
    folder = _folder(values, models_dir, what)
    given = dict(of_render.pair("--option", text) for text in options)
    wanted = [*_wanted(values, workflows, backend, given)]
    token = loader.secret("HF_TOKEN") if what == "fetch" else None
    fetching = _fetching(common, workflows, backend, models_dir, options)
    work = Work(common, Hub(values["models.url"], token), fetching)
    placed = [*work.placed(wanted if what == "list" else work.once(wanted), folder)]
    if what == "fetch" and not dry_run:
        _check_room(placed)
    fetched = work.planned if dry_run else work.fetched
    steps = {"list": work.row, "fetch": fetched, "verify": work.verified}
    for one in placed:
        work.write(one, steps[what])
    work.end()
    if dry_run:
        _check_room(placed)
    return common.pipe.status


def _fetching(
    common: Common,
    workflows: tuple[str, ...],
    backend: str | None,
    models_dir: str | None,
    options: tuple[str, ...],
) -> Callable[[str], str]:
    """Give what tells the command that fetches what was asked for, or a bundled workflow's."""
    given = [("--backend", backend), *(("--option", one) for one in options)]
    given += [("--models-dir", models_dir), ("--config", common.config_file)]
    said = [word for name, value in given if value for word in (name, value)]

    def command(workflow: str) -> str:
        names = workflows or ([] if backend else [workflow])
        return shlex.join(["imagen-models", "fetch", *names, *said])

    return command


def _folder(values: Config, named: str | None, what: str) -> Path | None:
    from ..config import settings
    from ..records.record import is_unicode

    folder = settings.expanded(named).absolute() if named else values["models.dir"]
    if folder is not None and not is_unicode(str(folder)):
        raise ConfigFault(f"the folder's path is not UTF-8: {folder}")
    if folder is None and what != "list":
        hint = "--models-dir ~/ComfyUI/models, or $IMAGEN_MODELS_DIR"
        raise ConfigFault("nobody says where ComfyUI's models are", hint=hint)
    if folder is not None and not folder.is_dir():
        raise ConfigFault(f"no folder {folder}", hint="it is models in the folder of ComfyUI")
    return folder


def _wanted(
    values: Config, names: tuple[str, ...], backend: str | None, given: dict[str, Any]
) -> Iterator[tuple[str, Model]]:
    """Yield the model files of a backend and of workflows, each with its workflow's name."""
    from .. import backends
    from ..config import loader
    from ..workflows import template

    if backend:
        opened: Any = backends.open_backend(backend, values, loader.ledger_path().parent)
        if not hasattr(opened, "needs"):
            raise UsageFault(f"the backend {backend} is no ComfyUI: it has no model files")
        yield from ((opened.workflow.name, model) for model in opened.needs(given))
    for name in names or ([] if backend else template.bundled()):
        found = template.load(name)
        yield from ((found.name, model) for model in found.needs(given))


def _check_room(wanted: Iterable[Wanted]) -> None:
    """Raise FileFault when there is no room for what is to come."""
    from ..models import files

    files.check_room(
        (place.path, model.size - place.bytes)
        for _, model, place in wanted
        if place and model.size and model.sources and place.state in (files.ABSENT, files.PARTIAL)
    )


class Work:
    """What is done with each file, and what is written of it."""

    def __init__(self, common: Common, hub: Hub, fetching: Callable[[str], str]) -> None:
        """Take what knows where files come from, and what command fetches a workflow's."""
        self._common = common
        self._hub = hub
        self._fetching = fetching
        self._as_table = sys.stdout is not None and sys.stdout.isatty()
        self._rows: list[dict[str, Any]] = []

    def once(self, wanted: Iterable[tuple[str, Model]]) -> Iterator[tuple[str, Model]]:
        """Give each file once, though several workflows want it."""
        seen: dict[tuple[str, str], Model] = {}
        for workflow, model in wanted:
            first = seen.setdefault((model.folder, model.file), model)
            if first is model:
                yield workflow, model
            elif first.sha256 != model.sha256:
                says = f"{workflow} wants another {model.folder}/{model.file}"
                self._common.pipe.failed(model.file, Refused(says, hint="one at a time"))

    def placed(self, wanted: Iterable[tuple[str, Model]], folder: Path | None) -> Iterator[Wanted]:
        """Look for each file; what has no place is said, and left out."""
        for workflow, model in wanted:
            try:
                place = _looked(folder, model) if folder else None
            except ImagenError as fault:
                self._common.pipe.failed(model.file, fault)
                continue
            yield Wanted(workflow, model, place)

    def row(self, one: Wanted) -> dict[str, Any]:
        """Give what is known of a file."""
        model, place = one.model, one.place
        found: dict[str, Any] = {
            "workflow": one.workflow,
            "folder": model.folder,
            "file": model.file,
        }
        found |= {name: getattr(model, name) for name in ("size", "sha256", "licence", "accept")}
        found["source"] = self._hub.address(model.sources[0]) if model.sources else None
        if place:
            found |= {"state": place.state, "path": str(place.path), "bytes": place.bytes}
        return {name: value for name, value in found.items() if value not in (None, "")}

    def planned(self, one: Wanted) -> dict[str, Any]:
        """Give what would be fetched."""
        from ..models import download, files

        assert one.place
        if one.place.state in (files.ABSENT, files.PARTIAL):
            download.check_source(one.model, one.place.path)
        return self.row(one)

    def fetched(self, one: Wanted) -> dict[str, Any]:
        """Fetch a file unless it is there."""
        from ..models import download, files

        model, place = one.model, one.place
        assert place
        if place.state == files.WRONG_SIZE:
            raise files.in_the_way(place, model)
        left = model.sources and files.part_of(place.path).exists()  # by a process that died
        if place.state == files.PRESENT and not left:
            return self.row(one)
        if model.accept:
            says = f"{model.licence}, to be accepted at {model.accept}"
            self._common.report.note(f"{model.file}: {says}")
        with _told(self._common.report, model.file) as tell:
            source = download.fetch(model, place.path, self._hub, tell, self._note)
        now = {"state": files.PRESENT, "bytes": place.path.stat().st_size}
        return {**self.row(one), **now, **({"source": source, "fetched": True} if source else {})}

    def _note(self, text: str) -> None:
        if self._common.report.shows:
            sys.stderr.write("\r\x1b[K")  # over the bar, which is drawn again below
        self._common.report.note(text)

    def verified(self, one: Wanted) -> dict[str, Any]:
        """Compare the bytes that are there with what is known of them."""
        from ..models import files

        model, place = one.model, one.place
        assert place
        if place.state in (files.ABSENT, files.PARTIAL):
            hint = self._fetching(one.workflow)
            raise files.WrongFile(f"it is not at {place.path}", hint=hint, state="missing")
        if place.state == files.WRONG_SIZE:
            raise files.in_the_way(place, model)
        with _told(self._common.report, model.file) as tell:
            found = files.digest(place.path, tell)
        files.check_digest(found, place.path, model)
        return {**self.row(one), "sha256": found, "state": "ok" if model.sha256 else "unknown"}

    def write(self, one: Wanted, step: Any) -> None:
        """Do the step, and write what comes of it; a failure is a line too."""
        from ..models import files

        try:
            try:
                row = step(one)
            except OSError as found:
                raise files.of_the_disk(found, "cannot read it") from None
        except ImagenError as fault:
            self._common.pipe.failed(one.model.file, fault)
            said = {"state": getattr(fault, "state", "failed")}
            row = {**self.row(one), **said, "error": fault.as_record("imagen-models")}
        self._rows.append(row)
        if not self._as_table:
            self._common.pipe.write(row)

    def end(self) -> None:
        """Write the table of a terminal."""
        from .. import tables
        from ..cli.pipe import visible, write_out
        from ..models import files

        if self._as_table and self._rows:
            sizes = [
                {"size": files.readable(row["size"])} if "size" in row else {} for row in self._rows
            ]
            rows = [{**row, **size} for row, size in zip(self._rows, sizes, strict=True)]
            write_out(tables.aligned(SHOWN, rows, visible).encode())


def _looked(folder: Path, model: Model) -> Place:
    from ..models import files

    try:
        return files.look(folder, model)
    except OSError as found:
        raise files.of_the_disk(found, "cannot look for it") from None


@contextmanager
def _told(report: Report, label: str) -> Iterator[Tell]:
    """Give what shows how far a file is: a bar on a terminal, nothing elsewhere."""
    from ..cli.pipe import visible
    from ..models import files

    if not report.shows:
        yield lambda _done, _of: None
        return
    with click.progressbar(
        length=1, label=visible(label), file=sys.stderr, item_show_func=lambda text: text or ""
    ) as bar:

        def tell(done: int, of: int | None) -> None:
            bar.length = of
            step = done - bar.pos
            if step < 0 or step * 500 >= (of or done) or done == of:
                bar.update(step, files.readable(done))

        yield tell


if __name__ == "__main__":
    main()
