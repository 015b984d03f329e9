"""Styles: the prompt of a person becomes the prompt that is sent."""

from __future__ import annotations

import pytest

from imagen.errors import Refused
from imagen.records.styles import styled

STYLES = {
    "plain": {},
    "around": {"prefix": "oil painting of ", "suffix": ", by night"},
    "template": {"template": "a {prompt} in the rain"},
    "both": {"template": "<{prompt}>", "prefix": "p ", "suffix": " s"},
    "twice": {"template": "{prompt} and {prompt}"},
    "no mark": {"template": "in the rain"},
    "negative": {"negative": "photo"},
    "nulls": {"prefix": None, "suffix": None, "template": None, "negative": None},
}


@pytest.mark.parametrize(
    ("style", "prompt", "sent"),
    [
        (None, "a cat", "a cat"),
        ("plain", "a cat", "a cat"),
        ("nulls", "a cat", "a cat"),
        ("around", "cat", "oil painting of cat, by night"),
        ("template", "cat", "a cat in the rain"),
        ("template", "{prompt}", "a {prompt} in the rain"),
        ("template", "{0} %s ${seed}", "a {0} %s ${seed} in the rain"),
        ("both", "cat", "p <cat> s"),
        ("twice", "cat", "cat and {prompt}"),
        ("no mark", "cat", "in the rain cat"),
    ],
)
def test_a_style_makes_the_prompt_that_is_sent(style, prompt, sent):
    request = {"prompt": prompt} | ({"style": style} if style else {})
    assert styled(request, STYLES).prompt == sent


@pytest.mark.parametrize(
    ("style", "asked", "sent"),
    [
        (None, None, None),
        (None, "blur", "blur"),
        ("plain", "blur", "blur"),
        ("negative", None, "photo"),
        ("negative", "blur", "blur, photo"),
        ("negative", "", "photo"),
        ("nulls", None, None),
    ],
)
def test_a_style_adds_to_what_is_kept_out_of_the_picture(style, asked, sent):
    request = {"prompt": "a", "style": style, "negative_prompt": asked}
    assert styled(request, STYLES).negative == sent


@pytest.mark.parametrize(
    ("style", "styles", "hint"),
    [
        ("templat", STYLES, "did you mean template?"),
        ("x", {}, "add it under styles: in the configuration"),
        ("../../x", {"ink": {}}, "known: ink"),
    ],
)
def test_an_unknown_style_is_refused_with_what_there_is(style, styles, hint):
    with pytest.raises(Refused) as caught:
        styled({"prompt": "a", "style": style}, styles)
    assert (caught.value.code, caught.value.hint) == ("unknown_style", hint)
