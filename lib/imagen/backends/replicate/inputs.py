"""A request as the input of a model at Replicate, and what of it is not met exactly. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...errors import Refused
from .. import Ask, Plan
from . import catalog
from .catalog import Flux, Reference

_SIDES = ("width", "height")
_OF_REQUEST = ("prompt", "seed")  # that no option replaces
_FIELDS = {  # inputs under the names that most models have for them, and the request's fields
    "negative_prompt": "negative_prompt",
    "width": "width",
    "height": "height",
    "num_inference_steps": "steps",
    "guidance_scale": "cfg",
    "guidance": "cfg",
    "scheduler": "scheduler",
}
_MOST_IMAGES = 100  # of a model that nothing is known of


def planned(ask: Ask, model: Reference, defaults: Mapping[str, Any]) -> Plan:
    """Give the exact body of the POST, but for the price.

    `defaults` are the instance's `default_steps` and `options`. Options go over what is worked out
    here, those of the request over the instance's. Refused when they ask for no number of images.
    """
    request = ask.request
    plan = Plan({}, {"seed": request["seed"], "model": str(model)}, None)
    steps = request.get("steps", defaults.get("default_steps"))
    given: dict[str, Any] = {"prompt": ask.prompt}
    if request["seed"] == 0:
        plan.drop("seed", 0, "Replicate takes a seed of 0 for none, and draws one")
    else:
        given["seed"] = request["seed"]
    if model.flux:
        given |= _for_flux(ask, model, model.flux, steps, plan)
    else:
        given |= _for_any(ask, model, steps, plan)
    _put_options(given, request, defaults.get("options") or {}, plan)
    plan.payload = {"version": model.version} if model.version else {}
    plan.payload["input"] = given
    plan.images = _images(given, model.flux)
    _resolve(request, given, model.flux, plan)
    return plan


def _for_flux(
    ask: Ask, model: Reference, flux: Flux, steps: int | None, plan: Plan
) -> dict[str, Any]:
    request, none = ask.request, f"{model.name} has no such input"
    shape = catalog.shape(flux, *(request.get(side, 1024) for side in _SIDES))
    if ask.negative:
        plan.drop("negative_prompt", ask.negative, none)
    for name in ("sampler", "scheduler"):
        if name in request:
            plan.drop(name, request[name], none)
    if "steps" in request and not flux.most_steps:
        plan.drop("steps", request["steps"], f"it is not known that {model.name} takes steps")
    if "cfg" in request and not flux.most_guidance:
        plan.drop("cfg", request["cfg"], none)
    found = {
        "aspect_ratio": shape.ratio,
        "megapixels": shape.megapixels,
        "num_inference_steps": _at_most(flux.most_steps, "steps", steps, plan),
        "guidance": _at_most(flux.most_guidance, "cfg", request.get("cfg"), plan),
        "output_format": "png",
    }
    return {name: value for name, value in found.items() if value is not None}


def _at_most(most: float, field: str, asked: Any, plan: Plan) -> Any:
    """Give what the model takes of it, None when it takes nothing or nothing was asked."""
    if not most or asked is None:
        return None
    if asked > most:
        plan.approximate(field, asked, most, f"the model takes at most {most:g}")
    return min(asked, most)


def _for_any(ask: Ask, model: Reference, steps: int | None, plan: Plan) -> dict[str, Any]:
    request = ask.request
    if "sampler" in request:
        why = f"it is not known that {model.name} takes one: if so, say it as an option"
        plan.drop("sampler", request["sampler"], why)
    said = {**request, "negative_prompt": ask.negative, "steps": steps}
    found = {name: said.get(field) for name, field in _FIELDS.items() if name != "guidance"}
    return {name: value for name, value in found.items() if value is not None}


def _put_options(
    given: dict[str, Any], request: Mapping[str, Any], defaults: Mapping[str, Any], plan: Plan
) -> None:
    """Put options over the input, and say where that replaces what the request asks for."""
    options = {**defaults, **request.get("options", {})}
    for name in _OF_REQUEST:
        if name in options:
            plan.drop(f"options.{name}", options.pop(name), f"the request's own {name} is sent")
    for name, value in options.items():
        field = _FIELDS.get(name, "")
        if field in request and given.get(name, value) != value:
            plan.approximated = [one for one in plan.approximated if one["field"] != field]
            plan.approximate(field, request[field], value, f"options.{name} goes over it")
    given |= options


def _images(given: Mapping[str, Any], flux: Flux | None) -> int:
    count = given.get("num_outputs", 1)
    most = flux.most_images if flux and flux.pixels else _MOST_IMAGES
    if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= most:
        raise Refused(f"num_outputs must be a whole number from 1 to {most}, not {count!r}")
    return count


def _resolve(
    request: Mapping[str, Any], given: Mapping[str, Any], flux: Flux | None, plan: Plan
) -> None:
    """Put what the input will make into the plan, as far as it is known."""
    size = catalog.pixels(flux, given)
    guidance = given.get("guidance", given.get("guidance_scale"))
    sides = (given.get("width"), given.get("height")) if flux is None else size or (None, None)
    known = {
        **dict(zip(_SIDES, sides, strict=True)),
        "steps": given.get("num_inference_steps", flux.steps if flux else None),
        "cfg": guidance,
    }
    kinds = (int, float)
    plan.resolved |= {
        name: value
        for name, value in known.items()
        if isinstance(value, kinds) and not isinstance(value, bool)
    }
    for side, got in zip(_SIDES, sides, strict=True):
        if flux and side in request and request[side] != got:
            ratio = given.get("aspect_ratio")
            why = f"the model makes aspect ratios, here {ratio}"
            plan.approximate(side, request[side], ratio if got is None else got, why)
