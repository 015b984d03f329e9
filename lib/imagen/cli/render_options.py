"""Render's request options, shared by every command that makes requests."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ..errors import REFUSED, BadLine, UsageFault, as_unicode, suggest, worse

if TYPE_CHECKING:
    from ..config.loader import Config
    from ..records.record import Record
    from ..records.request import Told
    from .option_effects import OptionEffects
    from .pipe import Pipe, Report

_REQUEST = [
    (["--backend"], "NAME", "Backend instance of the configuration."),
    (["--size"], "WxH", "Width and height in pixels."),
    (["--seed"], "N", "Seed, 0 to 2^64-1; drawn when not given."),
    (["--steps"], "N", "Sampling steps."),
    (["--cfg"], "X", "Guidance scale."),
    (["--sampler"], "NAME", "Sampler, by the backend's name."),
    (["--scheduler"], "NAME", "Scheduler, by the backend's name."),
    (["--negative"], "TEXT", "What to keep out of the picture."),
    (["--style"], "NAME", "Style of the configuration."),
    (["--id"], "ID", "Name of the one image asked for."),
]


def _parameters() -> list[click.Parameter]:
    texts = [click.Option(names, metavar=of, help=says) for names, of, says in _REQUEST]
    return [
        *texts,
        click.Option(
            ["--option", "options"],
            multiple=True,
            metavar="K=V",
            help="Backend option, typed as JSON where it parses; may be repeated.",
        ),
        click.Option(
            ["--set", "sets"],
            multiple=True,
            metavar="K=V",
            help="Override what a line says (also size=WxH); may be repeated.",
        ),
        click.Option(
            ["--count"],
            type=click.IntRange(1, 10_000),
            metavar="N",
            help="Make N of each, seeds counting up.",
        ),
        click.Option(
            ["--again"],
            is_flag=True,
            help="Make finished, failed or pending lines anew; options win over what they say.",
        ),
        click.Option(
            ["--new"], is_flag=True, help="Take up nothing that an earlier run left unfinished."
        ),
        click.Option(["--no-ledger"], is_flag=True, help="Keep no journal of this run."),
        click.Option(["--out-dir"], metavar="DIR", help="Folder for dated folders of images."),
        click.Option(["--output"], metavar="FILE", help="Write the one image here; - for stdout."),
        click.Option(["--force"], is_flag=True, help="Let --output replace a file."),
        click.Option(
            ["--timeout"], metavar="S", help="Give up after S seconds, and cancel what is free."
        ),
        click.Option(
            ["--wait"],
            metavar="S",
            help="After S seconds hand out the unfinished record.",
        ),
        click.Option(
            ["--strict"], is_flag=True, help="Refuse what would be approximated or dropped."
        ),
        click.Option(["--dry-run"], is_flag=True, help="Print what would be sent; send nothing."),
    ]


def render_options(*without: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command render's options, but for those named."""

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        kept: list[click.Parameter] = getattr(function, "__click_params__", [])
        ours = [one for one in reversed(_parameters()) if one.name not in without]
        function.__click_params__ = [*kept, *ours]  # type: ignore[attr-defined]
        return function

    return wrap


def told(said: Mapping[str, Any], config: Config) -> Told:
    """Read what the options said; UsageFault or Refused when it cannot be meant."""
    from ..config.settings import expanded
    from ..records import record
    from ..records.request import Told

    said = {**dict.fromkeys(str(one.name) for one in _parameters()), **said}
    out_dir = said["out_dir"]
    found = Told(
        defaults=_defaults(said),
        default_backend=config["default_backend"],
        overrides=_overrides(said["sets"] or ()),
        count=said["count"],
        again=bool(said["again"]),
        out_dir=expanded(out_dir).absolute() if out_dir else config["output.dir"],
        output=said["output"],
        force=bool(said["force"]),
        strict=bool(said["strict"]),
        timeout_s=_seconds("--timeout", said["timeout"]),
        wait_s=_seconds("--wait", said["wait"]),
        new=bool(said.get("new")),
    )
    sound = {"prompt": "sound?", "id": said["id"], **found.defaults}
    record.checked(record.overridden(sound, found.overrides))
    found.seed = found.defaults.get("seed")
    if found.output and (found.count or 1) > 1:
        raise UsageFault("--output takes one image, --count makes more", hint="use --out-dir")
    return found


def tell_unused(pipe: Pipe, effects: OptionEffects) -> int:
    """Name the options that had no effect; return the run's exit status."""
    say = pipe.report.say if effects.are_refused else pipe.report.note
    for option, hint in effects.unused():
        say(f"{option} has no effect on these lines (hint: {hint})")
    if effects.are_refused:
        pipe.status = worse(pipe.status, REFUSED)
    return pipe.status


_TEXT_FILES = (".json", ".jsonl", ".ndjson", ".txt")


def check_prompts(tool: str, prompts: Collection[str]) -> None:
    """Raise UsageFault when a prompt is the name of a file that holds requests or prompts."""
    import os
    import shlex

    for prompt in prompts:
        if prompt.lower().endswith(_TEXT_FILES) and os.path.isfile(prompt):  # noqa: PTH113 - Path raises for a long prompt
            shown = as_unicode(prompt)
            named = shlex.quote(prompt) if shown == prompt else f"$'{shown}'"
            hint = f"{tool} < {named}"
            if tool == "imagen-compare":
                hint = "it takes one prompt, and no lines; imagen-render reads lines"
            raise UsageFault(f"{shown} is a file, not a prompt", hint=hint)


def tell_unused_by_resume(report: Report, options: Mapping[str, Any]) -> None:
    """Name the options of requests that stand beside --resume: what is open was asked before."""
    makes_requests = [one for one in _parameters() if one.name not in _NOT_OF_REQUESTS]
    for parameter in makes_requests:
        if options.get(parameter.name or "") not in (None, False, ()):
            says = "--resume finishes what was begun, as it was begun"
            report.note(f"{parameter.opts[0]} has no effect beside --resume (hint: {says})")


_NOT_OF_REQUESTS = ("no_ledger", "out_dir", "output", "timeout", "wait", "dry_run")


def check_resume(options: Mapping[str, Any], prompts: Collection[str]) -> None:
    """Raise UsageFault when --resume stands beside what it does not go with."""
    if not options["resume"]:
        return
    if prompts or options["lines"]:
        raise UsageFault("--resume takes no prompts: it finishes what the ledger has open")
    if options["output"] or options["no_ledger"]:
        raise UsageFault("--resume goes with neither --output nor --no-ledger")


def _defaults(said: Mapping[str, Any]) -> Record:
    found: Record = {
        "backend": said["backend"],
        **_size(said["size"]),
        "seed": _number("--seed", said["seed"]),
        "steps": _number("--steps", said["steps"]),
        "cfg": _number("--cfg", said["cfg"]),
        "sampler": said["sampler"],
        "scheduler": said["scheduler"],
        "negative_prompt": said["negative"],
        "style": said["style"],
        "options": dict(pair("--option", text) for text in said["options"] or ()) or None,
    }
    return {name: value for name, value in found.items() if value is not None}


def _overrides(texts: Collection[str]) -> Record:
    """Return what --set says; `size=WxH` stands for width and height."""
    values: Record = {}
    for text in texts:
        if text.startswith("size="):
            values.update(_size(text.removeprefix("size="), "--set size"))
        else:
            values.update([pair("--set", text)])
    return values


def _size(text: str | None, option: str = "--size") -> dict[str, int]:
    from ..records import record

    if text is None:
        return {}
    size = record.size_of(text)
    if size is None:
        raise UsageFault(f"{option} takes WxH, like 1024x768, not {text[:40]!r}")
    return size


def _number(option: str, text: str | None) -> int | float | None:
    value = None if text is None else typed(text)
    if isinstance(value, bool) or not isinstance(value, (int, float, type(None))):
        raise UsageFault(f"{option} takes a number, not {str(text)[:40]!r}")
    return value


def _seconds(option: str, text: str | None) -> float | None:
    value = _number(option, text)
    if value is not None and value < 0:
        raise UsageFault(f"{option} takes seconds from 0, not {value}")
    return value


def pair(option: str, text: str) -> tuple[str, Any]:
    """Read K=V as `--option` and `--set` take it."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise UsageFault(f"{option} takes K=V, not {text[:40]!r}")
    if option == "--set":
        from ..records import record

        if name not in record.REQUEST:
            raise UsageFault(
                f"--set: {name!r} is no request field", hint=suggest(name, record.REQUEST)
            )
        if record.FIELDS[name].schema["type"] == "string":
            return name, value
    return name, typed(value)


def typed(text: str) -> Any:
    """Read a value as JSON where it parses, else as the text that it is."""
    from ..records import record

    try:
        return record.parse(b'{"it":%s}' % text.encode())["it"]
    except (BadLine, UnicodeEncodeError, LookupError):
        return text


def was_given(context: click.Context, name: str) -> bool:
    """Whether an option stands on this command line."""
    return context.get_parameter_source(name) is ParameterSource.COMMANDLINE


def as_arguments(context: click.Context, but: Collection[str] = ()) -> Iterator[str]:
    """Give back the render options that stand on this command line, to pass them on."""
    for parameter in _parameters():
        name = parameter.name
        if name is None or name in but or not was_given(context, name):
            continue
        value, option = context.params[name], parameter.opts[0]
        if value is True:
            yield option
        else:
            for one in value if isinstance(value, tuple) else [value]:
                yield f"{option}={one}"
