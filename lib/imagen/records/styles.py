"""Styles: the user's prompt becomes the prompt that is sent. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ..errors import Refused, suggest


class Prompts(NamedTuple):
    """The prompt and the negative prompt that are sent."""

    prompt: str
    negative: str | None


def styled(request: Mapping[str, Any], styles: Mapping[str, Mapping[str, Any]]) -> Prompts:
    """Apply the request's style, if any: template, prefix and suffix, and its negative prompt.

    `{prompt}` in a template stands for the prompt, once; in a prompt it is just text.
    """
    prompt, negative = request["prompt"], request.get("negative_prompt")
    name = request.get("style")
    if name is None:
        return Prompts(prompt, negative)
    if name not in styles:
        hint = suggest(name, styles) or "add it under styles: in the configuration"
        raise Refused(f"no style {name!r}", code="unknown_style", hint=hint)
    style = styles[name]
    before, mark, after = (style.get("template") or "{prompt}").partition("{prompt}")
    prompt = before + prompt + after if mark else f"{before} {prompt}"
    prompt = f"{style.get('prefix') or ''}{prompt}{style.get('suffix') or ''}"
    both = [one for one in (negative, style.get("negative")) if one]
    return Prompts(prompt, ", ".join(both) if both else negative)
