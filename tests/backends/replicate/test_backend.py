"""The Replicate backend, case by case, with requests-mock in the place of the network."""

from __future__ import annotations

import base64
import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import pytest
import requests
import requests_mock as mocked
from PIL import Image

from imagen import http
from imagen.backends import Ask, Instance, Lost, Plan, Sought, Wait
from imagen.backends.replicate import backend as module
from imagen.backends.replicate import outputs as output_files
from imagen.backends.replicate import responses
from imagen.backends.replicate.backend import Replicate
from imagen.errors import (
    AnswerLost,
    ConfigFault,
    ImagenError,
    NotAnImage,
    OutOfCredit,
    Refused,
    Rejected,
    RenderFailed,
    RenderLost,
    ServerFault,
    Throttled,
    Unauthorized,
    Unreachable,
)
from imagen.images import codec

API = "https://api.replicate.com"
SCHNELL, DEV = "black-forest-labs/flux-schnell", "black-forest-labs/flux-dev"
VERSION = "c846a69991daf4c0e5d016514849d14ee5b2e6846ce6b9d6f21369e564cfe51e"
CREATE = f"{API}/v1/models/{SCHNELL}/predictions"
LIST, ONE = f"{API}/v1/predictions", f"{API}/v1/predictions/p1"
IMAGE = "https://replicate.delivery/p1/out-0.png"
PNG = codec.encode_png(Image.linear_gradient("L").resize((16, 16)), {})
TOKEN = "r8_the-token-of-the-tests"
FAST = {"poll_s": 0.001, "retry_s": 0.001, "settle_s": 0.02, "patience_s": 0.05}
NOBODY = Lost(0.0, None, 0.0, lambda _: False)
Open = Callable[..., Replicate]


@pytest.fixture(autouse=True)
def token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPLICATE_API_TOKEN", TOKEN)


@pytest.fixture
def web() -> Any:
    with mocked.Mocker() as mocker:
        yield mocker


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits that were asked of tenacity, which do not take place."""
    waits: list[float] = []
    monkeypatch.setattr("tenacity.nap.time", SimpleNamespace(sleep=waits.append))
    return waits


def opened(model: str = SCHNELL, prices: Any = None, **more: Any) -> Replicate:
    settings = {"type": "replicate", "model": model, **FAST, **more}
    folder = Path()
    return Replicate(Instance("paid", settings, folder, folder, prices or {}))


def ask(**more: Any) -> Ask:
    request = {"prompt": "a cat", "seed": 7, **more}
    return Ask(request, request["prompt"], request.get("negative_prompt"), "an id")


def planned(model: str = SCHNELL, instance: dict[str, Any] | None = None, **more: Any) -> Plan:
    return opened(model, **(instance or {})).plan(ask(**more))


def sent(plan: Plan) -> dict[str, Any]:
    found: dict[str, Any] = plan.payload["input"]
    return found


def fields(changes: list[dict[str, Any]]) -> dict[str, Any]:
    return {one["field"]: one.get("got") for one in changes}


def soon(seconds: float = 5.0) -> Wait:
    return Wait(time.monotonic() + seconds, lambda _: None)


def prediction(status: str = "succeeded", **more: Any) -> dict[str, Any]:
    made = {"id": "p1", "status": status, "model": SCHNELL, "output": [IMAGE], "logs": ""}
    return {**made, "metrics": {"predict_time": 0.5}, "created_at": stamp(), **more}


def stamp(age_s: float = 0.0, form: str = "%Y-%m-%dT%H:%M:%SZ") -> str:
    return time.strftime(form, time.gmtime(time.time() - age_s))


def dated(age_s: float = 0.0) -> dict[str, str]:
    return {"Date": stamp(age_s, "%a, %d %b %Y %H:%M:%S GMT")}


# -- the plan: schnell -----------------------------------------------------------------------------


def test_a_plain_request_is_sent_whole_and_asks_for_png():
    plan = planned()
    assert plan.payload == {
        "input": {
            "prompt": "a cat",
            "seed": 7,
            "aspect_ratio": "1:1",
            "megapixels": "1",
            "output_format": "png",
        }
    }
    assert (plan.handle, plan.images, plan.cost_usd, plan.fidelity) == (None, 1, 0.003, {})
    size = {"width": 1024, "height": 1024}
    assert plan.resolved == {"seed": 7, "model": SCHNELL, "steps": 4, **size}


def test_a_pinned_version_goes_beside_the_input():
    plan = planned(f"{SCHNELL}:{VERSION}")
    assert plan.payload["version"] == VERSION
    assert sent(plan) == sent(planned())
    assert plan.resolved["model"] == f"{SCHNELL}:{VERSION}"
    assert plan.cost_usd == 0.003


def test_a_size_becomes_the_nearest_ratio_and_the_record_says_so():
    plan = planned(width=1920, height=1080)
    assert (sent(plan)["aspect_ratio"], sent(plan)["megapixels"]) == ("16:9", "1")
    assert fields(plan.approximated) == {"width": 1344, "height": 768}
    assert (plan.resolved["width"], plan.resolved["height"]) == (1344, 768)
    assert "width" not in sent(plan)
    exact = planned(width=512, height=512)
    assert (sent(exact)["megapixels"], exact.fidelity) == ("0.25", {})
    wide = fields(planned(width=1000, height=480).approximated)
    assert wide == {"width": 768, "height": 320}


def test_a_side_that_nobody_asked_for_is_not_reported():
    assert fields(planned(width=2000).approximated) == {"width": 1344}


def test_what_the_model_has_not_is_dropped_and_reported():
    said = {"negative_prompt": "blur", "cfg": 3.5, "sampler": "euler", "scheduler": "simple"}
    plan = planned(**said)
    assert {one["field"]: one["asked"] for one in plan.dropped} == said
    assert sent(plan) == sent(planned())
    assert not planned(negative_prompt="").dropped


def test_steps_are_those_of_the_request_else_of_the_instance_and_no_more_than_the_model_takes():
    assert "num_inference_steps" not in sent(planned())
    assert sent(planned(instance={"default_steps": 2}))["num_inference_steps"] == 2
    plan = planned(instance={"default_steps": 2}, steps=3)
    assert (sent(plan)["num_inference_steps"], plan.resolved["steps"]) == (3, 3)
    plan = planned(steps=28)
    assert (sent(plan)["num_inference_steps"], fields(plan.approximated)) == (4, {"steps": 4})


def test_dev_takes_more_steps_and_cfg_as_its_guidance():
    plan = planned(DEV, steps=28, cfg=3.5)
    assert (sent(plan)["num_inference_steps"], sent(plan)["guidance"]) == (28, 3.5)
    assert (plan.fidelity, plan.cost_usd, plan.resolved["cfg"]) == ({}, 0.025, 3.5)
    assert fields(planned(DEV, cfg=30, steps=99).approximated) == {"cfg": 10, "steps": 50}
    assert planned(DEV).resolved["steps"] == 28


@pytest.mark.parametrize("seed", [1, 2**32, 2**53 + 1, 2**64 - 1])
def test_a_seed_is_always_sent_as_it_is(seed):
    plan = planned(seed=seed)
    assert (sent(plan)["seed"], plan.resolved["seed"], plan.fidelity) == (seed, seed, {})


def test_only_a_seed_of_0_is_not_sent_and_that_is_reported():
    plan = planned(seed=0)
    assert "seed" not in sent(plan)
    assert [(one["field"], one["asked"]) for one in plan.dropped] == [("seed", 0)]


# -- the plan: options -----------------------------------------------------------------------------


def test_options_are_passed_on_as_they_are_the_requests_over_the_instances():
    instance = {"options": {"go_fast": False, "output_quality": 90, "x": {"y": [1, None]}}}
    given = sent(planned(instance=instance, options={"output_quality": 100}))
    assert (given["go_fast"], given["output_quality"], given["x"]) == (False, 100, {"y": [1, None]})


def test_an_option_goes_over_what_is_worked_out_and_the_plan_follows():
    said = {"aspect_ratio": "21:9", "megapixels": "0.25", "num_outputs": 3, "output_format": "webp"}
    plan = planned(width=1024, height=1024, options=said)
    assert said.items() <= sent(plan).items()
    assert (plan.images, plan.cost_usd) == (3, 0.009)
    assert fields(plan.approximated) == {"width": 768, "height": 320}
    plan = planned(steps=28, options={"num_inference_steps": 1})
    assert (fields(plan.approximated), plan.resolved["steps"]) == ({"steps": 1}, 1)
    plan = planned(options={"aspect_ratio": "custom"})
    assert "width" not in plan.resolved
    assert fields(planned(width=64, options={"aspect_ratio": "custom"}).approximated) == {
        "width": "custom"
    }


def test_no_option_replaces_the_prompt_or_the_seed():
    plan = planned(options={"prompt": "a dog", "seed": 9})
    assert (sent(plan)["prompt"], sent(plan)["seed"]) == ("a cat", 7)
    assert [one["field"] for one in plan.dropped] == ["options.prompt", "options.seed"]


@pytest.mark.parametrize("count", [0, 5, -1, 1.5, "2", True, None, [1]])
def test_a_number_of_images_that_is_none_is_refused_before_anything_is_sent(count):
    with pytest.raises(Refused, match="num_outputs"):
        planned(options={"num_outputs": count})


# -- the plan: other models ------------------------------------------------------------------------


def test_of_another_flux_only_the_ratio_is_known():
    plan = planned("black-forest-labs/flux-1.1-pro", width=1920, height=1080, steps=20, cfg=2)
    assert sent(plan) == {
        "prompt": "a cat",
        "seed": 7,
        "aspect_ratio": "16:9",
        "output_format": "png",
    }
    assert fields(plan.approximated) == {"width": "16:9", "height": "16:9"}
    assert [one["field"] for one in plan.dropped] == ["steps", "cfg"]
    assert plan.resolved == {"seed": 7, "model": "black-forest-labs/flux-1.1-pro"}
    assert plan.cost_usd == 0.04


def test_a_model_that_is_not_known_gets_the_fields_under_their_usual_names():
    said = {"negative_prompt": "blur", "width": 768, "height": 640, "steps": 25, "cfg": 7}
    plan = planned("stability-ai/sdxl:abc", **said, scheduler="K_EULER", sampler="x")
    assert plan.payload["version"] == "abc"
    assert sent(plan) == {
        "prompt": "a cat",
        "seed": 7,
        "negative_prompt": "blur",
        "width": 768,
        "height": 640,
        "num_inference_steps": 25,
        "guidance_scale": 7,
        "scheduler": "K_EULER",
    }
    assert [one["field"] for one in plan.dropped] == ["sampler"]
    assert (plan.approximated, plan.cost_usd) == ([], None)
    assert plan.resolved.items() >= {"width": 768, "height": 640, "steps": 25, "cfg": 7}.items()
    plan = planned("a/b", width=768, options={"width": 512})
    assert fields(plan.approximated) == {"width": 512}
    assert plan.resolved["width"] == 512


# -- the plan: prices ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("price", "more", "usd"),
    [
        ({"amount": 0.01, "unit": "image"}, {"options": {"num_outputs": 2}}, 0.02),
        ({"amount": 0.01, "unit": "megapixel"}, {"width": 1344, "height": 768}, 0.01032192),
        ({"amount": 0.01, "unit": "megapixel"}, {"options": {"aspect_ratio": "custom"}}, None),
        ({"amount": 0.001, "unit": "second"}, {}, 0.6),
        ({"amount": 0, "unit": "image"}, {}, 0),
    ],
)
def test_a_configured_price_goes_over_the_listed_one(price, more, usd):
    assert opened(prices={SCHNELL: price}).plan(ask(**more)).cost_usd == usd


def test_a_model_without_a_price_costs_something_unknown():
    assert planned("a/b").cost_usd is None


def test_a_price_for_each_second_is_settled_by_how_long_it_ran(web):
    by_time = opened(prices={SCHNELL: {"amount": 0.001, "unit": "second"}}, timeout_s=30)
    assert by_time.plan(ask()).cost_usd == 0.3, "it may run until it is cancelled"
    web.get(ONE, json=prediction(metrics={"predict_time": 2.5}))
    web.get(IMAGE, content=PNG)
    assert by_time.collect("p1", soon(), None).cost_usd == 0.0025
    assert opened().collect("p1", soon(), None).cost_usd is None
    web.get(ONE, json=prediction(metrics={}))
    assert by_time.collect("p1", soon(), None).cost_usd is None


def test_images_that_a_model_makes_beyond_those_asked_for_are_paid_too(web):
    backend = opened(prices={SCHNELL: {"amount": 0.01, "unit": "image"}})
    web.get(IMAGE, content=PNG)
    for outputs, usd in ((1, None), (3, 0.03)):
        web.get(ONE, json=prediction(output=[IMAGE] * outputs))
        assert backend.collect("p1", soon(), backend.plan(ask())).cost_usd == usd


# -- the instance ----------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["flux-schnell", "a/b/c", "a b/c", "a/b:", "https://x/y", "../b"])
def test_a_model_that_is_none_is_a_fault_of_the_configuration(model):
    with pytest.raises(ConfigFault, match="owner/name") as caught:
        opened(model)
    assert caught.value.exit_status == 2
    assert SCHNELL in caught.value.hint


def test_an_instance_without_a_model_is_a_fault_of_the_configuration():
    with pytest.raises(ConfigFault, match="no model"):
        opened(model=None)


def test_the_time_out_knows_the_model():
    assert [opened(model).timeout_s for model in (SCHNELL, DEV, "a/b")] == [60, 120, 120]
    assert opened(timeout_s=5).timeout_s == 5


def test_it_waits_for_an_answer_for_at_most_a_minute():
    with pytest.raises(ConfigFault, match="prefer_wait_s"):
        opened(prefer_wait_s=61)


# -- submit ----------------------------------------------------------------------------------------


def test_an_official_model_is_asked_at_its_own_address(web):
    web.post(CREATE, json=prediction("starting"), status_code=201)
    backend = opened()
    assert backend.submit(plan := backend.plan(ask())) == "p1"
    (request,) = web.request_history
    assert request.json() == plan.payload == {"input": sent(plan)}
    assert request.headers["Authorization"] == f"Bearer {TOKEN}"
    assert request.headers["Cancel-After"] == "600s"
    assert "Prefer" not in request.headers
    assert request.timeout == (http.CONNECT_S, 60)


def test_a_version_is_asked_at_the_common_address(web):
    web.post(LIST, json=prediction("processing"), status_code=202)
    backend = opened(f"{SCHNELL}:{VERSION}")
    assert backend.submit(backend.plan(ask())) == "p1"
    assert web.last_request.json()["version"] == VERSION


def test_the_deadline_and_the_wait_for_an_answer_are_told(web):
    web.post(CREATE, json=prediction(), status_code=201)
    backend = opened(timeout_s=7.3, prefer_wait_s=60)
    backend.submit(backend.plan(ask()))
    assert web.last_request.headers["Cancel-After"] == "73s"
    assert web.last_request.headers["Prefer"] == "wait=60"
    assert web.last_request.timeout[1] > 60
    backend = opened(cancel_after_s=20.5)
    backend.submit(backend.plan(ask()))
    assert web.last_request.headers["Cancel-After"] == "21s"


def test_a_seed_of_64_bits_arrives_as_it_is(web):
    web.post(CREATE, json=prediction("starting"), status_code=201)
    backend = opened()
    backend.submit(backend.plan(ask(seed=2**64 - 1)))
    assert b'"seed": 18446744073709551615' in web.last_request.body


@pytest.mark.parametrize(
    "base", ["http://proxy.example:8080/r8", "http://proxy.example:8080/r8/v1"]
)
def test_the_address_may_be_another_and_the_environment_goes_over_it(web, monkeypatch, base):
    web.post(f"http://proxy.example:8080/r8/v1/models/{SCHNELL}/predictions", json=prediction())
    backend = opened(base_url=base)
    assert backend.submit(backend.plan(ask())) == "p1"
    monkeypatch.setenv("REPLICATE_BASE_URL", base)
    backend = opened(base_url="http://elsewhere.example")
    assert backend.submit(backend.plan(ask())) == "p1"
    monkeypatch.setenv("REPLICATE_BASE_URL", "ftp://me:hunter2@x")
    with pytest.raises(ConfigFault, match=r"\$REPLICATE_BASE_URL must be a URL") as caught:
        opened().submit(backend.plan(ask()))
    assert "hunter2" not in caught.value.as_line()


def fault_of(act: Callable[[], Any]) -> ImagenError:
    with pytest.raises(ImagenError) as caught:
        act()
    assert TOKEN not in caught.value.as_line()
    assert "\n" not in caught.value.as_line()
    return caught.value


def submitted(backend: Replicate | None = None) -> Any:
    backend = backend or opened()
    return backend.submit(backend.plan(ask()))


def test_a_refused_token_names_its_variable(web, monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "r8_another-token")
    web.post(CREATE, status_code=401, json={"title": "Unauthenticated"})
    fault = fault_of(lambda: submitted(opened(api_token_env="MY_TOKEN")))
    assert (fault.code, fault.billed, fault.retry) == ("unauthorized", "no", "never")
    assert "MY_TOKEN" in fault.message
    assert web.call_count == 1
    assert web.last_request.headers["Authorization"] == "Bearer r8_another-token"


@pytest.mark.parametrize("value", [None, ""])
def test_without_a_token_nothing_is_sent_but_the_plan_can_be_seen(web, monkeypatch, value):
    monkeypatch.delenv("REPLICATE_API_TOKEN")
    if value is not None:
        monkeypatch.setenv("REPLICATE_API_TOKEN", value)
    plan = planned()
    for act in (
        lambda: opened().submit(plan),
        lambda: opened().find(plan, NOBODY),
        lambda: opened().collect("p1", soon(), plan),
    ):
        fault = fault_of(act)
        assert isinstance(fault, ConfigFault)
        assert fault.exit_status == 2
        assert "REPLICATE_API_TOKEN" in fault.message
    assert web.call_count == 0


@pytest.mark.parametrize("value", ["r8_x\n", "r8 x", "r8_ü", "\tr8", "r8\r\nX-Evil: 1"])
def test_a_token_that_no_header_can_hold_is_a_clear_error_that_does_not_show_it(
    web, monkeypatch, value
):
    monkeypatch.setenv("REPLICATE_API_TOKEN", value)
    fault = fault_of(submitted)
    assert isinstance(fault, ConfigFault)
    assert "REPLICATE_API_TOKEN" in fault.message
    assert value.strip() not in fault.as_line()
    assert web.call_count == 0


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 422, 429])
@pytest.mark.parametrize("body", ["", "<html>sorry</html>", '"no"', "[]"])
def test_a_refusal_that_is_not_the_apis_own_leaves_open_what_became_of_it(web, status, body):
    web.post(CREATE, status_code=status, text=body)
    fault = fault_of(submitted)
    assert (type(fault), fault.billed) == (AnswerLost, "unknown")
    assert web.call_count == 1


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308, 408, 410, 412, 418, 425, 499])
def test_a_status_that_proves_no_refusal_leaves_open_what_became_of_it(web, status):
    web.post(CREATE, status_code=status, json={"detail": "?"})
    fault = fault_of(submitted)
    assert isinstance(fault, (AnswerLost, ServerFault))
    assert fault.billed == "unknown"


def test_each_attempt_is_told_before_it_begins(web, slept):
    busy = {"status_code": 429, "json": {}}
    web.post(CREATE, [busy, busy, {"json": prediction(), "status_code": 201}])
    backend, seen = opened(), list[int]()
    backend.submit(planned(), begin=lambda: seen.append(web.call_count))
    assert seen == [0, 1, 2]


def test_a_wait_that_ends_too_late_is_told_and_not_waited(web, slept):
    web.post(CREATE, status_code=429, json={"retry_after": 6})
    backend = opened()
    fault = fault_of(lambda: backend.submit(planned(), until=time.monotonic() + 3))
    assert (type(fault), fault.retry_after_s, slept) == (Throttled, 6, [])


def test_the_servers_time_of_the_last_answer_is_remembered_even_of_a_refusal(web, slept):
    busy = {"status_code": 429, "json": {}, "headers": dated(3600)}
    web.post(CREATE, [busy, {"json": prediction(), "status_code": 201}])
    backend, dates = opened(), list[float | None]()
    backend.submit(planned(), begin=lambda: dates.append(backend.server_date))
    assert dates[0] is None
    assert dates[1] == pytest.approx(time.time() - 3600, abs=10)


def test_out_of_credit_is_told_and_never_retried(web):
    web.post(CREATE, status_code=402, json={"title": "?"})
    fault = fault_of(submitted)
    assert isinstance(fault, OutOfCredit)
    assert (fault.code, fault.billed, fault.retry) == ("out_of_credit", "no", "never")
    assert "out of credit" in fault.message
    assert web.call_count == 1


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [
        (
            422,
            '{"title": "Input validation failed", "detail": "- prompt is required\\n"}',
            "prompt",
        ),
        (422, '{"detail": "version does not exist"}', "version does not exist"),
        (400, '{"x": 1}', "400"),
        (403, "{}", "403"),
        (404, '{"detail": "not found"}', "not found"),
    ],
)
def test_a_refused_input_is_told_in_replicates_words_and_nothing_was_billed(
    web, status, body, says
):
    web.post(CREATE, status_code=status, text=body)
    fault = fault_of(submitted)
    assert isinstance(fault, Rejected)
    assert (fault.code, fault.billed, fault.retry) == ("rejected", "no", "never")
    assert says in fault.message
    assert web.call_count == 1
    assert (":version" in (fault.hint or "")) == (status == 404)


@pytest.mark.parametrize(
    ("headers", "body", "seconds"),
    [
        ({"Retry-After": "7"}, '{"retry_after": 5, "detail": "resets in ~3s."}', 7),
        ({}, '{"retry_after": 5, "detail": "resets in ~3s."}', 5),
        ({}, '{"detail": "Request was throttled. Your rate limit resets in ~3s."}', 3),
    ],
)
def test_a_429_is_waited_out_as_told_in_header_body_or_text(web, slept, headers, body, seconds):
    busy = {"status_code": 429, "headers": headers, "text": body}
    web.post(CREATE, [busy, busy, {"json": prediction("starting"), "status_code": 201}])
    assert submitted() == "p1"
    assert slept == [seconds, seconds]
    assert web.call_count == 3


def test_a_429_that_does_not_say_how_long_is_waited_for_longer_each_time(web, slept):
    busy = {"status_code": 429, "json": {}}
    web.post(CREATE, [busy] * 3 + [{"json": prediction(), "status_code": 201}])
    assert submitted() == "p1"
    assert slept == [1, 2, 4]


def test_after_three_retries_a_429_is_told(web, slept):
    web.post(CREATE, status_code=429, json={"retry_after": 2})
    fault = fault_of(submitted)
    assert isinstance(fault, Throttled)
    assert (fault.billed, fault.retry, fault.retry_after_s) == ("no", "after", 2)
    assert (web.call_count, slept) == (4, [2, 2, 2])


def test_a_wait_of_more_than_a_minute_is_told_and_not_waited(web, slept):
    busy = {"status_code": 429, "json": {}}
    web.post(CREATE, [busy, {**busy, "headers": {"Retry-After": "61"}}])
    fault = fault_of(submitted)
    assert isinstance(fault, Throttled)
    assert (fault.retry, fault.retry_after_s, web.call_count, slept) == ("after", 61, 2, [1])


@pytest.mark.parametrize("status", [500, 502, 503, 504, 520])
def test_a_5xx_may_have_been_accepted_and_is_never_sent_again_here(web, status):
    web.post(CREATE, status_code=status, text="oops")
    fault = fault_of(submitted)
    assert (type(fault), fault.billed) == (ServerFault, "unknown")
    assert web.call_count == 1


@pytest.mark.parametrize("fault", [requests.ReadTimeout, requests.exceptions.ChunkedEncodingError])
def test_an_answer_that_does_not_come_may_have_been_accepted(web, fault):
    web.post(CREATE, exc=fault)
    lost = fault_of(submitted)
    assert (type(lost), lost.billed) == (AnswerLost, "unknown")
    assert web.call_count == 1


def test_what_never_left_is_told_apart(web):
    web.post(CREATE, exc=Unreachable)
    fault = fault_of(submitted)
    assert (type(fault), fault.billed) == (Unreachable, "no")


@pytest.mark.parametrize("text", ["", "<html>", "[]", "{}", '{"id": null}', '{"id": "../x"}', "{"])
def test_an_acceptance_without_an_id_that_can_be_read_is_a_lost_answer(web, text):
    web.post(CREATE, text=text, status_code=201)
    fault = fault_of(submitted)
    assert (type(fault), fault.billed) == (AnswerLost, "unknown")


# -- collect ---------------------------------------------------------------------------------------


def test_it_polls_until_the_end_and_fetches_the_images(web):
    rest = [prediction(status, output=None) for status in ("starting", "processing", "newfangled")]
    web.get(ONE, [{"json": one} for one in [*rest, prediction()]])
    web.get(IMAGE, content=PNG)
    told: list[str] = []
    backend = opened()
    found = backend.collect("p1", Wait(time.monotonic() + 5, told.append), backend.plan(ask()))
    assert found is not None
    assert (found.images, found.run_ms, found.cost_usd) == ([PNG], 500, None)
    assert found.meta == {"prediction_id": "p1", "seed_used": 7, "predict_time_s": 0.5}
    assert told == ["starting", "processing", "newfangled"]


def test_the_pause_between_two_looks_is_half_a_second():
    assert module.KEYS["poll_s"].default == 0.5


@pytest.mark.parametrize("status", ["starting", "processing", "newfangled"])
def test_when_the_wait_is_over_it_gives_nothing_and_cancels_nothing(web, status):
    web.get(ONE, json=prediction(status))
    for seconds in (-1, 0.02):
        assert opened().collect("p1", soon(seconds), None) is None
    opened().cancel("p1")
    assert {request.method for request in web.request_history} == {"GET"}


@pytest.mark.parametrize(
    ("more", "code", "billed", "retry"),
    [
        (
            {"status": "failed", "error": "NSFW content detected"},
            "prediction_failed",
            "unknown",
            "never",
        ),
        ({"status": "canceled"}, "prediction_canceled", "unknown", "never"),
        ({"status": "canceled", "metrics": {}}, "prediction_canceled", "no", "never"),
        ({"status": "aborted"}, "prediction_aborted", "no", "safe"),
    ],
)
def test_a_bad_ending_is_an_error(web, more, code, billed, retry):
    web.get(ONE, json=prediction(**{"output": None, **more}))
    fault = fault_of(lambda: opened().collect("p1", soon(), None))
    assert isinstance(fault, RenderFailed)
    assert (fault.code, fault.billed, fault.retry) == (code, billed, retry)
    assert more.get("error", "") in fault.message


def test_images_that_were_filtered_out_are_missing_and_the_others_come(web):
    web.get(ONE, json=prediction(output=[IMAGE]))
    web.get(IMAGE, content=PNG)
    backend = opened()
    plan = backend.plan(ask(options={"num_outputs": 4}))
    found = backend.collect("p1", soon(), plan)
    assert found is not None
    assert (len(found.images), plan.images) == (1, 4)
    for nothing in ([], None):
        web.get(ONE, json=prediction(output=nothing))
        assert backend.collect("p1", soon(), plan).images == []


@pytest.mark.parametrize("more", [{"data_removed": True, "output": None}, {}])
def test_an_image_that_is_gone_is_lost_and_paid(web, more):
    web.get(ONE, json=prediction(**more))
    web.get(IMAGE, status_code=404)
    fault = fault_of(lambda: opened().collect("p1", soon(), None))
    assert isinstance(fault, RenderLost)
    assert (fault.finished, fault.billed, fault.retry) == (True, "yes", "never")


def test_one_image_that_is_gone_does_not_lose_the_others(web):
    other = IMAGE.replace("0", "1")
    web.get(ONE, json=prediction(output=[IMAGE, other]))
    web.get(IMAGE, status_code=404)
    web.get(other, content=PNG)
    found = opened().collect("p1", soon(), None)
    assert (found.images, [*found.numbers], found.fault) == ([PNG], [2], None)


def test_a_prediction_that_nobody_knows_may_have_been_billed(web):
    web.get(ONE, status_code=404, json={"detail": "not found"})
    fault = fault_of(lambda: opened().collect("p1", soon(), None))
    assert isinstance(fault, RenderLost)
    assert (fault.finished, fault.billed, fault.retry) == (False, "unknown", "reconcile")


def test_a_5xx_on_a_read_is_retried_once(web):
    web.get(ONE, [{"status_code": 503}, {"json": prediction()}])
    web.get(IMAGE, content=PNG)
    assert opened().collect("p1", soon(), None).images == [PNG]
    web.get(ONE, status_code=503)
    before = web.call_count
    fault = fault_of(lambda: opened().collect("p1", soon(), None))
    assert isinstance(fault, ServerFault)
    assert (fault.billed, fault.retry) == ("unknown", "safe")
    assert web.call_count - before == 2


def test_a_network_that_is_down_is_waited_out_for_a_while(web):
    down = [{"exc": Unreachable}, {"exc": requests.ReadTimeout}] * 3
    web.get(ONE, [*down, {"status_code": 429}, {"json": prediction()}])
    web.get(IMAGE, content=PNG)
    assert opened(patience_s=5).collect("p1", soon(), None).images == [PNG]
    web.get(ONE, exc=Unreachable)
    fault = fault_of(lambda: opened().collect("p1", soon(), None))
    assert (type(fault), fault.billed, fault.retry) == (Unreachable, "unknown", "safe")


@pytest.mark.parametrize(("status", "kind"), [(401, Unauthorized), (403, Rejected)])
def test_whoever_may_not_look_may_ask_again_for_the_prediction_goes_on(web, status, kind):
    web.get(ONE, status_code=status)
    fault = fault_of(lambda: opened().collect("p1", soon(), None))
    assert (type(fault), fault.billed, fault.retry) == (kind, "unknown", "safe")


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "<html>", '{"id": "p1"}', '{"id": "p2", "status": "x"}']
)
def test_an_answer_that_is_no_prediction_is_a_fault_of_the_server(web, text):
    web.get(ONE, text=text)
    fault = fault_of(lambda: opened().collect("p1", soon(), None))
    assert (type(fault), fault.billed) == (ServerFault, "unknown")


def test_an_image_is_fetched_once_more_after_a_transient_fault(web):
    web.get(ONE, json=prediction())
    for first in ({"status_code": 503}, {"exc": requests.ReadTimeout}):
        web.get(IMAGE, [first, {"content": PNG}])
        assert opened().collect("p1", soon(), None).images == [PNG]
    web.get(IMAGE, status_code=503)
    before = web.call_count
    fault = fault_of(lambda: opened().collect("p1", soon(), None))
    assert (type(fault), fault.billed, fault.retry) == (ServerFault, "yes", "safe")
    assert web.call_count - before == 3


@pytest.mark.parametrize(
    ("url", "with_token"),
    [
        (IMAGE, True),
        ("https://pbxt.replicate.delivery/x.png", True),
        (f"{API}/v1/files/x", True),
        ("http://replicate.delivery/x.png", False),
        ("https://storage.example.com/x.png", False),
    ],
)
def test_the_token_goes_to_the_api_and_to_replicates_files_only(web, url, with_token):
    web.get(ONE, json=prediction(output=url))
    web.get(url, content=PNG)
    assert opened().collect("p1", soon(), None).images == [PNG]
    assert ("Authorization" in web.last_request.headers) == with_token


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://h/x",
        "x.png",
        "http://h\\@x/",
        "http://",
        "http://me:pw@h/x",
        "http://h:99999/x",
        "http://h:0/",
        "https://replicate.delivery@evil/x",
    ],
)
def test_an_address_that_is_not_plain_http_is_not_fetched_and_ends_it(web, url):
    web.get(ONE, json=prediction(output=url))
    ended_for_good(opened().collect("p1", soon(), None))
    assert web.call_count == 1


# -- what models return ----------------------------------------------------------------------------


def ended_for_good(collected: Any) -> Any:
    """The fault of a prediction that is paid and made no picture."""
    fault = collected.fault
    assert (type(fault), fault.code, collected.images) == (NotAnImage, "not_an_image", [])
    assert (fault.billed, fault.retry, fault.ends) == ("yes", "never", True)
    return collected


def in_base64(data: bytes, head: str = "data:image/png;base64,") -> str:
    return head + base64.b64encode(data).decode()


OTHER = IMAGE.replace("out-0", "out-1")


@pytest.mark.parametrize(
    "output",
    [
        IMAGE,
        {"image": IMAGE, "caption": "a cat"},
        [{"image": IMAGE, "score": 0.5}],
        [[[IMAGE]]],
        {"images": [{"url": IMAGE, "nsfw": False, "seed": 7}], "text": "ftp and http are schemes"},
        ["here is your picture", IMAGE, "enjoy"],
        f"{IMAGE} a picture of a cat",
        f"  {IMAGE}\n",
        in_base64(PNG),
        in_base64(PNG, "DATA:IMAGE/PNG;BASE64,"),
        in_base64(PNG, "data:;charset=x;base64,"),
        base64.encodebytes(PNG).decode().join(["data:image/png;base64,", ""]),
        "data:image/png;base64," + base64.urlsafe_b64encode(PNG).decode().rstrip("="),
        "data:image/png;base64," + quote(base64.b64encode(PNG)),
        "data:image/png," + quote(PNG),
        {"image": in_base64(PNG), "mask": None},
    ],
)
def test_a_picture_is_found_in_whatever_a_model_returns(web, output):
    web.get(ONE, json=prediction(output=output))
    web.get(IMAGE, content=PNG)
    found = opened().collect("p1", soon(), None)
    assert (found.images, found.fault, [*found.numbers]) == ([PNG], None, [1])
    assert "outputs" not in found.meta


def test_pictures_come_in_the_order_of_the_output(web):
    second = codec.encode_png(Image.new("RGB", (16, 16)), {})
    web.get(ONE, json=prediction(output={"b": [{"x": in_base64(second)}], "a": IMAGE}))
    web.get(IMAGE, content=PNG)
    assert opened().collect("p1", soon(), None).images == [second, PNG]


@pytest.mark.parametrize(
    ("output", "raw"),
    [
        ("a poem about a cat", (b"a poem about a cat", ".txt")),
        (["a ", "po", "em"], (b"a poem", ".txt")),
        ({"score": 0.5}, (b'{"score": 0.5}', ".json")),
        (7, (b"7", ".json")),
        ("data:image/svg+xml;utf8,<svg viewBox='0 0 1 1'/>", (b"<svg viewBox='0 0 1 1'/>", ".svg")),
        (in_base64(b"PK\x03\x04", "data:application/zip;base64,"), (b"PK\x03\x04", ".zip")),
        (in_base64(b"#!/bin/sh", "data:application/x-sh;base64,"), (b"#!/bin/sh", ".bin")),
        (in_base64(PNG[:-20]), (PNG[:-20], ".bin")),
    ],
)
def test_what_holds_no_picture_ends_it_and_is_kept(web, output, raw):
    web.get(ONE, json=prediction(output=output))
    assert ended_for_good(opened().collect("p1", soon(), None)).raw == raw


@pytest.mark.parametrize("output", ["data:image/png;base64,%%%", "data:image/png;base64,A"])
def test_a_data_address_that_holds_nothing_ends_it(web, output):
    web.get(ONE, json=prediction(output=output))
    found = ended_for_good(opened().collect("p1", soon(), None))
    assert (found.raw, found.meta["outputs"]) == (
        None,
        [f"data:image/png;base64,… ({len(output) - 22} characters)"],
    )


def test_a_data_address_that_is_too_long_is_not_decoded(web, monkeypatch):
    monkeypatch.setattr(output_files, "MOST_DATA", 100)
    web.get(ONE, json=prediction(output=in_base64(PNG)))
    assert ended_for_good(opened().collect("p1", soon(), None)).raw is None


@pytest.mark.parametrize(
    ("url", "kind", "suffix"),
    [
        ("https://replicate.delivery/p1/clip.mp4", "video/mp4", ".mp4"),
        ("https://replicate.delivery/p1/clip.mp4", "binary/octet-stream", ".mp4"),
        ("https://replicate.delivery/p1/evil.desktop", "application/x-desktop", ".bin"),
    ],
)
def test_a_file_that_is_no_picture_is_fetched_twice_and_kept(web, url, kind, suffix):
    web.get(ONE, json=prediction(output=url))
    web.get(url, content=b"\0\0\0\x20ftypisom0000", headers={"Content-Type": kind})
    found = ended_for_good(opened().collect("p1", soon(), None))
    assert (found.raw.suffix, found.meta["outputs"], web.call_count) == (suffix, [url], 3)


def test_a_picture_among_other_files_is_the_first_image_and_the_others_are_named(web):
    web.get(ONE, json=prediction(output={"json": OTHER, "image": IMAGE}))
    web.get(IMAGE, content=PNG)
    web.get(OTHER, content=b"{}")
    found = opened().collect("p1", soon(), None)
    assert (found.images, [*found.numbers], found.fault) == ([PNG], [1], None)
    assert found.meta["outputs"] == [OTHER, IMAGE]


def test_no_more_files_are_fetched_than_were_planned_and_a_few(web):
    urls = [f"https://replicate.delivery/p1/{number}.png" for number in range(400)]
    web.get(ONE, json=prediction(output=urls))
    web.get(mocked.ANY, content=PNG)
    web.get(ONE, json=prediction(output=urls))
    backend = opened(prices={SCHNELL: {"amount": 0.01, "unit": "image"}})
    found = backend.collect("p1", soon(), backend.plan(ask(options={"num_outputs": 2})))
    assert (len(found.images), web.call_count) == (2 + output_files.MORE, 11)
    assert (found.meta["outputs_left"], found.cost_usd) == (390, 4)
    assert len(found.meta["outputs"]) == 20


def test_an_output_without_end_is_read_only_so_far():
    deep: Any = IMAGE
    for _ in range(1000):
        deep = [deep]
    assert responses.addresses(deep) == []
    assert len(responses.addresses([IMAGE] * 10_000)) == 1000


# -- one file of several ---------------------------------------------------------------------------


def completed(age_s: float, **more: Any) -> dict[str, Any]:
    """A prediction that ended so long ago, by the server's clock, which is a day fast."""
    return {
        "json": prediction(completed_at=stamp(age_s - 86400), **more),
        "headers": dated(-86400),
    }


@pytest.mark.parametrize("status", [400, 401, 402, 403])
def test_a_refused_file_is_gone_once_the_hour_is_over_and_until_then_it_is_asked_again(web, status):
    web.get(IMAGE, status_code=status)
    web.get(ONE, **completed(3500))
    fault = fault_of(lambda: opened().collect("p1", soon(), None))
    kind = OutOfCredit if status == 402 else Rejected
    assert (type(fault), fault.billed, fault.retry) == (kind, "yes", "safe")
    web.get(ONE, json=prediction())
    assert fault_of(lambda: opened().collect("p1", soon(), None)).retry == "safe", "no clock"
    for over in (completed(3700), completed(10, data_removed=True)):
        web.get(ONE, **over)
        fault = fault_of(lambda: opened().collect("p1", soon(), None))
        assert (type(fault), fault.finished, fault.billed) == (RenderLost, True, "yes")


def test_a_file_whose_host_is_nowhere_is_gone_after_a_day(web):
    web.get(IMAGE, exc=Unreachable)
    web.get(ONE, **completed(80_000))
    assert isinstance(fault_of(lambda: opened().collect("p1", soon(), None)), Unreachable)
    web.get(ONE, **completed(90_000))
    assert isinstance(fault_of(lambda: opened().collect("p1", soon(), None)), RenderLost)


@pytest.mark.parametrize(
    "fault", [{"status_code": 503}, {"status_code": 403}, {"content": PNG[:-9]}]
)
def test_a_file_that_cannot_be_had_now_costs_no_other(web, fault):
    third = IMAGE.replace("out-0", "out-2")
    web.get(ONE, json=prediction(output=[IMAGE, OTHER, third]))
    web.get(IMAGE, content=PNG)
    web.get(OTHER, **fault)
    web.get(third, content=PNG)
    found = opened().collect("p1", soon(), None)
    assert (found.images, [*found.numbers]) == ([PNG, PNG], [1, 3])
    assert (found.fault.billed, found.fault.retry, found.fault.ends) == ("yes", "safe", False)


@pytest.mark.parametrize("handle", ["", "../models", "a/b", "p1?x=1", "p 1", "p" * 200])
def test_a_handle_that_is_no_id_of_a_prediction_is_refused(web, handle):
    assert isinstance(fault_of(lambda: opened().collect(handle, soon(), None)), Refused)
    assert web.call_count == 0


@pytest.mark.parametrize(
    ("asked", "logs", "listed", "used"),
    [
        (7, "Using seed: 9", {}, 7),
        (2**64 - 1, "", {"seed": 1.8e19}, 2**64 - 1),
        (0, "Using seed: 9", {}, 9),
        (0, "", {}, None),
        (None, "Using seed: 9", {"seed": 5}, 5),
        (None, "Using seed: 9", {"seed": 0}, 9),
        (None, "Using seed: 9", {"seed": None}, 9),
    ],
)
def test_the_used_seed_is_the_one_that_was_sent_or_that_of_the_logs(web, asked, logs, listed, used):
    web.get(ONE, json=prediction(logs=logs, input=listed))
    web.get(IMAGE, content=PNG)
    backend = opened()
    plan = None if asked is None else backend.plan(ask(seed=asked))
    assert backend.collect("p1", soon(), plan).meta["seed_used"] == used


def test_stop_ends_the_wait_at_once(web):
    web.get(ONE, json=prediction("processing"))

    def stop(_: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        opened().collect("p1", Wait(time.monotonic() + 5, stop), None)
    assert {request.method for request in web.request_history} == {"GET"}


# -- find ------------------------------------------------------------------------------------------


def lost(age_s: float | None = 30, *owned: str, server_date: float | None = None) -> Lost:
    started_at = time.time() - (30 if age_s is None else age_s)
    return Lost(age_s, server_date, started_at, lambda handle: handle in owned)


def item(id_: str = "p1", age_s: float = 20, **more: Any) -> dict[str, Any]:
    given = {**sent(planned()), "go_fast": True}
    return prediction(**{"id": id_, "created_at": stamp(age_s), "input": given, **more})


def page(*items: Any, next: Any = None, **more: Any) -> dict[str, Any]:
    return {
        "json": {"previous": None, "next": next, "results": [*items]},
        "headers": dated(),
        **more,
    }


def look(age_s: float | None = 30, *owned: str, server_date: float | None = None) -> str | Sought:
    backend = opened()
    return backend.find(backend.plan(ask()), lost(age_s, *owned, server_date=server_date))


def test_a_lost_create_is_found(web):
    web.get(LIST, **page(item("other", input={"prompt": "a dog"}), item()))
    assert look() == "p1"
    assert web.call_count == 1


def test_a_list_without_it_says_that_it_is_certainly_absent(web):
    web.get(LIST, **page(item("other", input={"prompt": "a dog"})))
    assert look() is Sought.ABSENT
    web.get(LIST, **page())
    assert look() is Sought.ABSENT


def test_what_another_entry_owns_is_skipped(web):
    web.get(LIST, **page(item("p1"), item("p2")))
    assert look(30, "p1") == "p2"
    assert look(30, "p1", "p2") is Sought.ABSENT


def test_a_living_one_goes_before_a_failed_one_and_then_the_oldest(web):
    web.get(LIST, **page(item("new", 5), item("old", 10), item("failed", 20, status="failed")))
    assert look() == "old"
    assert look(30, "old", "new") == "failed"


def test_it_is_the_model_of_the_instance_or_perhaps_its_alias(web):
    web.get(LIST, **page(item(model=DEV)))
    assert look() is Sought.UNKNOWN
    web.get(LIST, **page(item(model=DEV, input={"prompt": "a cat", "seed": 8})))
    assert look() is Sought.ABSENT


def test_what_was_made_long_before_the_submit_is_not_ours(web):
    web.get(LIST, **page(item("new", 140), item("old", 4000), next=f"{LIST}?cursor=x"))
    assert look() == "new"
    web.get(LIST, **page(item("old", 4000), next=f"{LIST}?cursor=x"))
    assert look() is Sought.ABSENT
    assert web.call_count == 2, "further back nothing of ours can be"
    web.get(LIST, **page(item("near", 160), item("old", 4000), next=f"{LIST}?cursor=x"))
    assert look() is Sought.UNKNOWN, "the very input, and clocks are compared"


def test_removed_data_in_the_window_cannot_be_told_when_nothing_matches(web):
    gone = item("gone", data_removed=True) | {"input": {}}
    web.get(LIST, **page(gone))
    assert look() is Sought.UNKNOWN
    web.get(LIST, **page(gone, item()))
    assert look() == "p1"
    web.get(LIST, **page(gone | {"created_at": stamp(4000)}))
    assert look() is Sought.ABSENT
    web.get(LIST, **page(gone))
    assert look(30, "gone") is Sought.ABSENT


def test_pages_are_followed_to_the_end(web):
    stranger = item("other", input={"prompt": "a dog"})
    web.get(f"{LIST}?cursor=3", **page(item()), complete_qs=True)
    web.get(f"{LIST}?cursor=2", **page(stranger, next=f"{LIST}?cursor=3"), complete_qs=True)
    web.get(LIST, **page(stranger, next=f"{LIST}?cursor=2"), complete_qs=True)
    assert look() == "p1"
    assert web.call_count == 3
    assert all(request.headers["Authorization"] for request in web.request_history)


def test_a_list_without_end_is_given_up(web):
    endless = (
        page(item("x", input={"prompt": "a dog"}), next=f"{LIST}?cursor={n}")
        for n in itertools.count()
    )
    pages = [next(endless) for _ in range(module._MOST_PAGES + 5)]
    web.get(LIST, pages)
    assert look() is Sought.UNKNOWN
    assert web.call_count == module._MOST_PAGES


def test_a_list_of_what_ran_that_has_no_end_or_does_not_advance_is_not_read_for_ever(
    web, monkeypatch
):
    monkeypatch.setattr(module, "_RAN_PAGES", 20)
    numbers = itertools.count()
    more = (page(item(f"p{n}"), next=f"{LIST}?cursor={n}") for n in numbers)
    web.get(LIST, [next(more) for _ in range(30)])
    ran = opened().ran(0)
    assert [next(ran).handle for _ in range(20)] == [f"p{n}" for n in range(20)]
    with pytest.raises(ServerFault, match="has no end"):
        next(ran)
    for items in ([item("p1")], []):
        web.get(LIST, [page(*items, next=f"{LIST}?cursor={n}") for n in range(30)])
        with pytest.raises(ServerFault, match="does not advance"):
            list(opened().ran(0))


def test_the_window_is_on_the_servers_clock(web):
    """Ours is an hour fast, or slow: the Date of the answer tells."""
    for skew in (3600, -3600):
        web.get(LIST, **page(item(age_s=20 + skew)) | {"headers": dated(skew)})
        assert look() == "p1"
        web.get(LIST, **page(item(age_s=4000 + skew)) | {"headers": dated(skew)})
        assert look() is Sought.ABSENT


def test_without_an_exact_age_the_list_is_read_to_its_end(web):
    old, stranger = item("old", 9000), item("other", 5000, input={"prompt": "a dog"})
    for headers, age_s in (({}, 30.0), (dated(), None)):
        web.get(f"{LIST}?cursor=2", **page(old) | {"headers": headers}, complete_qs=True)
        web.get(LIST, **page(stranger, next=f"{LIST}?cursor=2") | {"headers": headers})
        web.get(f"{LIST}?cursor=2", **page(old) | {"headers": headers}, complete_qs=True)
        assert look(age_s) == "old"
        assert look(age_s, "old") is Sought.ABSENT


def test_without_an_exact_age_the_servers_own_time_before_the_submit_ends_the_look(web):
    web.get(LIST, **page(item("old", 9000), next=f"{LIST}?cursor=x"))
    assert look(None, server_date=time.time() - 30) is Sought.ABSENT
    web.get(LIST, **page(item("ours", 60)))
    assert look(None, server_date=time.time() - 30) == "ours"


def test_what_cannot_be_read_is_no_doubt_where_it_is_older_than_clocks_can_be_wrong(web):
    old = item("old", 90_000, input=None, data_removed=True)
    web.get(LIST, **page(old) | {"headers": {}})
    assert look() is Sought.ABSENT
    web.get(LIST, **page(old | {"created_at": stamp(80_000)}) | {"headers": {}})
    assert look() is Sought.UNKNOWN


def test_a_list_that_goes_round_in_a_circle_cannot_be_read_to_its_end(web):
    web.get(LIST, **page(item("x", input={"prompt": "a dog"}), next=f"{LIST}?cursor=1"))
    assert look() is Sought.UNKNOWN
    assert web.call_count == 2


def test_the_list_may_lag_for_five_seconds_when_nothing_else_is_said():
    assert opened(settle_s=None).settle_s == 5
    assert opened(connect_s=1, read_s=2, prefer_wait_s=3).create_s == 6


@pytest.mark.parametrize(
    "answer",
    [
        {"status_code": 503},
        {"exc": Unreachable},
        {"exc": requests.ReadTimeout},
        {"status_code": 403},
        {"text": "<html>"},
        {"json": {}},
        {"json": {"results": {}}},
        {"json": {"results": [], "next": "https://evil.example/steal"}},
        {"json": {"results": [], "next": 5}},
        {"json": {"results": [], "next": "http://[::1"}},
    ],
)
def test_a_list_that_cannot_be_read_is_a_fault_and_no_absence(web, answer):
    web.get(LIST, **(answer if "exc" in answer else {"headers": dated(), **answer}))
    assert fault_of(look).billed == "unknown"
    assert all(request.url.startswith(API) for request in web.request_history)


@pytest.mark.parametrize("odd", [None, {"id": 5}])
def test_an_item_that_cannot_be_read_leaves_it_undecided(web, odd):
    web.get(LIST, **page(odd))
    assert look() is Sought.UNKNOWN


def test_a_page_is_read_once_more_after_a_transient_fault(web):
    web.get(LIST, [{"status_code": 503}, page(item())])
    assert look() == "p1"


def test_what_was_found_before_a_page_that_cannot_be_read_is_taken(web):
    web.get(f"{LIST}?cursor=2", status_code=500, complete_qs=True)
    web.get(LIST, **page(item(), next=f"{LIST}?cursor=2"), complete_qs=True)
    assert look() == "p1"


def test_a_refused_token_is_told_and_the_lost_one_may_have_been_billed(web):
    web.get(LIST, status_code=401)
    fault = fault_of(look)
    assert (fault.code, fault.billed, fault.retry) == ("unauthorized", "unknown", "safe")


def test_times_without_fractions_are_read(web):
    web.get(LIST, **page(item() | {"created_at": stamp(20)}))
    assert look() == "p1"
    web.get(LIST, **page(item() | {"created_at": stamp(20).replace("Z", ".123456Z")}))
    assert look() == "p1"


# -- status ----------------------------------------------------------------------------------------


def test_its_status_without_and_with_a_look(web, monkeypatch):
    web.get(LIST, **page())
    assert str(opened().status(False)) == "ok"
    assert web.call_count == 0
    assert str(opened().status(True)) == "ok"
    web.get(LIST, status_code=401, json={"detail": "no"})
    assert str(opened().status(True)) == (
        "not configured (the token in $REPLICATE_API_TOKEN is refused)"
    )
    web.get(LIST, exc=Unreachable)
    assert opened().status(True).state == "unreachable"
    web.get(LIST, text="<html>")
    assert opened().status(True).state == "unreachable"
    monkeypatch.setenv("REPLICATE_API_TOKEN", "a b")
    assert opened().status(False).state == "not configured"
    monkeypatch.delenv("REPLICATE_API_TOKEN")
    assert str(opened().status(True)) == "not configured (set REPLICATE_API_TOKEN)"


def test_it_tells_its_model():
    assert opened().about() == {"model": SCHNELL}


def test_everything_planned_can_be_sent_as_json():
    assert json.loads(json.dumps(planned().payload)) == planned().payload
