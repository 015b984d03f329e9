"""The configuration: flag over environment over file over default."""

from __future__ import annotations

from pathlib import Path

import pytest

from imagen import config
from imagen.errors import ConfigFault


def with_file(tmp_path: Path, text: str) -> config.Config:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return config.load(str(path))


def test_without_anything_the_defaults_hold_and_the_mock_is_there(tmp_path):
    found = config.load(None)
    assert found.path is None
    assert found["default_backend"] == "mock"
    assert found["output.dir"] == tmp_path / "home" / "Pictures" / "imagen"
    assert (found["output.preview"], found["output.cloud_sync"]) == ("auto", "auto")
    assert found.backends == {"mock": {"type": "mock"}}
    assert {*found.sources.values()} == {"default"}


@pytest.mark.parametrize(
    ("variable", "key", "text", "said", "value"),
    [
        ("IMAGEN_BACKEND", "default_backend", "default_backend: mock", "other", "other"),
        ("IMAGEN_OUT_DIR", "output.dir", "output: {dir: /f}", "/e", Path("/e")),
        ("IMAGEN_PREVIEW", "output.preview", "output: {preview: on}", "off", "off"),
        ("IMAGEN_CLOUD_SYNC", "output.cloud_sync", "output: {cloud_sync: on}", "off", "off"),
        ("SUPABASE_URL", "supabase.url", "supabase: {url: http://f}", "http://e", "http://e"),
    ],
)
def test_the_environment_goes_over_the_file(
    tmp_path, monkeypatch, variable, key, text, said, value
):
    assert with_file(tmp_path, text).sources[key] == "file"
    monkeypatch.setenv(variable, said)
    found = with_file(tmp_path, text)
    assert (found[key], found.sources[key]) == (value, f"${variable}")
    monkeypatch.setenv(variable, "")
    assert with_file(tmp_path, text).sources[key] == "file", "an empty variable says nothing"


@pytest.mark.parametrize("text", ["", "# nothing\n", "{}", "output:\n", "output: {dir: null}\n"])
def test_a_file_that_says_nothing_leaves_the_defaults(tmp_path, text):
    assert with_file(tmp_path, text)["output.dir"] == tmp_path / "home" / "Pictures" / "imagen"


def test_an_instance_named_mock_may_be_configured(tmp_path):
    found = with_file(tmp_path, "backends: {mock: {type: mock, timeout_s: 3}, x: {type: mock}}")
    assert found.backends == {"mock": {"type": "mock", "timeout_s": 3}, "x": {"type": "mock"}}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("nonsense: 1", "nonsense: unknown key"),
        ("output: 5", "output: must hold keys and values"),
        ("backends: []", "backends: must hold"),
        ("backends: {x: 5}", "backends.x: must hold"),
        ("backends: {x: {}}", "backends.x: no type"),
        ("output: {preview: 1}", "output.preview: must be auto, on, off"),
        ("supabase: {url: example.org}", "supabase.url: must be a URL"),
        ("supabase: {owner_user_id: x}", "supabase.owner_user_id: must be a UUID"),
        ("budget: {per_day: -1}", "budget.per_day: must be an amount"),
        ("budget: {per_day: .inf}", "budget.per_day: must be an amount"),
        ("budget: {per_day: .nan}", "budget.per_day: must be an amount"),
        ("budget: {per_day: true}", "budget.per_day: must be an amount"),
        ("worker: {jobs: 0}", "worker.jobs: must be a whole number"),
        ("worker: {jobs: 1.5}", "worker.jobs: must be a whole number"),
        ("worker: {backends: x}", "worker.backends: must be a list"),
        ("worker: {backends: [1]}", "worker.backends: must be a list"),
        ("styles: {x: y}", "styles.x: must hold"),
        ("default_backend: nowhere", "default_backend: no backend 'nowhere'"),
        ("output: {dri: x}\nworker: {jobs: 0}", r"output.dri: unknown key \(and 1 more\)"),
    ],
)
def test_what_is_wrong_with_a_file_is_named_by_its_place(tmp_path, text, says):
    with pytest.raises(ConfigFault, match=says) as caught:
        with_file(tmp_path, text)
    assert caught.value.exit_status == 2
    assert "mine.yaml" in caught.value.message
    assert caught.value.hint


def test_a_password_in_a_url_is_not_told_even_when_it_is_wrong(tmp_path):
    with pytest.raises(ConfigFault) as caught:
        with_file(tmp_path, "supabase: {url: 'ftp://me:hunter2@example.org'}")
    assert "hunter2" not in caught.value.as_line()


def test_every_key_knows_its_line(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("# c\noutput:\n  dir: x\nbackends:\n  a: {type: mock}\n  b:\n    type: mock\n")
    lines = config.parse(path).lines
    assert lines["output",] == 2
    assert lines["output", "dir"] == 3
    assert lines["backends", "a", "type"] == 5
    assert config.line_of(("backends", "b", "url"), lines) == 6, "else that of the key around it"
    assert config.line_of(("nowhere",), lines) == 1


def test_keys_that_stand_twice_are_found(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("output: {dir: x}\nusage: {}\noutput: {}\n")
    assert config.parse(path).twice == [("output",)]


@pytest.mark.parametrize(
    ("text", "line", "key"),
    [
        ("budget: {per_day: 1}\noutput: {dir: x}\nbudget: {per_month: 20}\n", 3, "budget"),
        ("budget:\n  per_day: 1\n  per_day: 100\n", 3, "budget.per_day"),
        ("budget:\n  per_day: 1\n  'per_day': 100\n", 3, "budget.per_day"),
        ("backends:\n  a: {type: mock}\n  a: {type: mock}\n", 3, "backends.a"),
        (
            "backends:\n  a:\n    type: mock\n    faults: [{fault: slow, fault: crash}]\n",
            *(4, "backends.a.faults.0.fault"),
        ),
    ],
)
def test_a_key_that_stands_twice_is_refused_with_its_line(tmp_path, text, line, key):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigFault) as caught:
        config.load(str(path))
    assert caught.value.message == f"{path}:{line}: {key}: stands twice"
    assert caught.value.exit_status == 2


def test_a_merge_may_be_overridden_and_an_anchor_used_twice(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "backends:\n  a: &a {type: mock, timeout_s: 5}\n  b: {<<: *a, timeout_s: 7}\n  c: *a\n"
        "  d: {<<: {timeout_s: 1}, <<: {timeout_s: 2}, type: mock}\n"
    )
    timeouts = [config.load(str(path)).backends[name]["timeout_s"] for name in "abc"]
    assert timeouts == [5, 7, 5]


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("backends.x.api_token", "hunter2", "***"),
        ("backends.x.password", "hunter2", "***"),
        ("supabase.service_key", "hunter2", "***"),
        ("backends.x.options", {"token": "hunter2", "n": 1}, {"token": "***", "n": 1}),
        ("backends.x.url", "http://me:hunter2@h:1/p", "http://***@h:1/p"),
        ("backends.x.api_token_env", "THE_NAME", "THE_NAME"),
        ("backends.x.headers_env", {"X-Token": "THE_NAME"}, {"X-Token": "THE_NAME"}),
        ("output.dir", "/x", "/x"),
        ("backends.x.api_token", None, None),
    ],
)
def test_what_looks_like_a_secret_is_not_shown(name, value, shown):
    assert config.shown(name, value) == shown


def test_a_variable_that_is_empty_holds_no_secret(monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "")
    assert config.secret("MY_TOKEN") is None
    assert config.secret("NOT_SET_AT_ALL") is None


def test_the_ledger_lies_where_xdg_says_or_where_it_is_told(tmp_path, monkeypatch):
    assert config.ledger_path() == tmp_path / "state" / "imagen" / "ledger.sqlite3"
    monkeypatch.delenv("XDG_STATE_HOME")
    assert config.ledger_path() == tmp_path / "home/.local/state/imagen/ledger.sqlite3"
    monkeypatch.setenv("IMAGEN_LEDGER", "~/l.db")
    assert config.ledger_path() == tmp_path / "home" / "l.db"


def test_a_secret_is_the_variable_or_else_in_a_file_that_only_its_owner_may_read(
    tmp_path, monkeypatch
):
    held = tmp_path / "key"
    held.write_text("from the file\n")
    held.chmod(0o600)
    monkeypatch.setenv("MY_KEY_FILE", str(held))
    assert config.secret("MY_KEY") == "from the file"
    monkeypatch.setenv("MY_KEY", "from the variable")
    assert config.secret("MY_KEY") == "from the variable"
    monkeypatch.setenv("MY_KEY", "")
    for mode in (0o640, 0o604):
        held.chmod(mode)
        with pytest.raises(ConfigFault, match="others may read") as caught:
            config.secret("MY_KEY")
        assert "from the file" not in caught.value.as_line()
    held.unlink()
    with pytest.raises(ConfigFault, match="cannot read the file that"):
        config.secret("MY_KEY")
