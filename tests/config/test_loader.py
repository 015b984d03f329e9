"""The configuration: flag over environment over file over default."""

from __future__ import annotations

from pathlib import Path

import pytest

from imagen.config import loader
from imagen.errors import ConfigFault


def with_file(tmp_path: Path, text: str) -> loader.Config:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return loader.load(str(path))


def test_without_anything_the_defaults_hold_and_the_mock_is_there(tmp_path):
    found = loader.load(None)
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
    lines = loader.parse(path).lines
    assert lines["output",] == 2
    assert lines["output", "dir"] == 3
    assert lines["backends", "a", "type"] == 5
    assert loader.line_of(("backends", "b", "url"), lines) == 6, "else that of the key around it"
    assert loader.line_of(("nowhere",), lines) == 1


def test_keys_that_stand_twice_are_found(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("output: {dir: x}\nusage: {}\noutput: {}\n")
    assert loader.parse(path).twice == [("output",)]


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
        loader.load(str(path))
    assert caught.value.message == f"{path}:{line}: {key}: stands twice"
    assert caught.value.exit_status == 2


def test_a_merge_may_be_overridden_and_an_anchor_used_twice(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "backends:\n  a: &a {type: mock, timeout_s: 5}\n  b: {<<: *a, timeout_s: 7}\n  c: *a\n"
        "  d: {<<: {timeout_s: 1}, <<: {timeout_s: 2}, type: mock}\n"
    )
    timeouts = [loader.load(str(path)).backends[name]["timeout_s"] for name in "abc"]
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
    assert loader.shown(name, value) == shown


def test_a_variable_that_is_empty_holds_no_secret(monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "")
    assert loader.secret("MY_TOKEN") is None
    assert loader.secret("NOT_SET_AT_ALL") is None


def test_the_ledger_lies_where_xdg_says_or_where_it_is_told(tmp_path, monkeypatch):
    assert loader.ledger_path() == tmp_path / "state" / "imagen" / "ledger.sqlite3"
    monkeypatch.delenv("XDG_STATE_HOME")
    assert loader.ledger_path() == tmp_path / "home/.local/state/imagen/ledger.sqlite3"
    monkeypatch.setenv("IMAGEN_LEDGER", "~/l.db")
    assert loader.ledger_path() == tmp_path / "home" / "l.db"


def test_a_secret_is_the_variable_or_else_in_a_file_that_only_its_owner_may_read(
    tmp_path, monkeypatch
):
    held = tmp_path / "key"
    held.write_text("from the file\n")
    held.chmod(0o600)
    monkeypatch.setenv("MY_KEY_FILE", str(held))
    assert loader.secret("MY_KEY") == "from the file"
    monkeypatch.setenv("MY_KEY", "from the variable")
    assert loader.secret("MY_KEY") == "from the variable"
    monkeypatch.setenv("MY_KEY", "")
    for mode in (0o640, 0o604):
        held.chmod(mode)
        with pytest.raises(ConfigFault, match="others may read") as caught:
            loader.secret("MY_KEY")
        assert "from the file" not in caught.value.as_line()
    held.unlink()
    with pytest.raises(ConfigFault, match="cannot read the file that"):
        loader.secret("MY_KEY")


# -- what a shell, YAML or an editor makes of a file -----------------------------------------------


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("output: {dir: $HOME/pics}", r"output.dir: .*'\$HOME/pics'"),
        ("output: {dir: '${HOME}/pics'}", r"output.dir: "),
        ("output: {dir: /data/$USER/pics}", r"output.dir: "),
        ("output: {dir: '/data/x-${USER}'}", r"output.dir: "),
        ("output: {dir: '%USERPROFILE%/pics'}", r"output.dir: "),
        (r"output: {dir: C:\Users\me\pics}", r"output.dir: "),
        (r"output: {dir: 'c:/pics'}", r"output.dir: "),
        (r"output: {dir: '\\server\pics'}", r"output.dir: "),
        ("models: {dir: $HOME/models}", r"models.dir: "),
    ],
)
def test_a_path_that_only_a_shell_or_windows_can_read_is_refused_with_a_hint(tmp_path, text, says):
    with pytest.raises(ConfigFault, match=says) as caught:
        with_file(tmp_path, text)
    assert "~" in str(caught.value.hint) or "/" in str(caught.value.hint)


def test_a_path_from_the_environment_is_checked_alike(monkeypatch):
    monkeypatch.setenv("IMAGEN_OUT_DIR", "$HOME/pics")
    with pytest.raises(ConfigFault, match=r"\$IMAGEN_OUT_DIR"):
        loader.load(None)


def test_no_variable_may_name_a_ledger_or_a_file_in_a_folder_called_home(monkeypatch):
    monkeypatch.setenv("IMAGEN_LEDGER", "${HOME}/ledger.sqlite3")
    with pytest.raises(ConfigFault, match="HOME"):
        loader.ledger_path()
    with pytest.raises(ConfigFault, match="HOME"):
        loader.find("$HOME/mine.yaml")


@pytest.mark.parametrize("path", ["/x/a$", "/x/$5", "~/US$notes", "100%/b%", "a:b"])
def test_a_path_with_a_dollar_that_is_no_variable_is_taken(tmp_path, path):
    with_file(tmp_path, f"output: {{dir: '{path}'}}")


@pytest.mark.parametrize(
    ("text", "place", "reads"),
    [
        ("backends:\n  a: {type: mock, timeout_s: 010}", "backends.a.timeout_s", "010 as 8"),
        ("budget:\n  per_day: 1:30", "budget.per_day", "1:30 as 90"),
        ("budget:\n  per_day: 1:30.5", "budget.per_day", "1:30.5 as 90.5"),
        ("worker:\n  jobs: +0_10", "worker.jobs", "+0_10 as 8"),
        ("backends:\n  a: {type: mock, options: {n: [010]}}", "backends.a.options.n.0", "010 as 8"),
    ],
)
def test_a_number_that_yaml_reads_as_another_is_refused(tmp_path, text, place, reads):
    with pytest.raises(ConfigFault) as caught:
        with_file(tmp_path, text)
    assert f"mine.yaml: {place}: YAML reads {reads}" in caught.value.message
    assert "10" in str(caught.value.hint) or "quotes" in str(caught.value.hint)


@pytest.mark.parametrize(
    "number", ["0", "-0", "00", "07", "10", "0.5", "00.5", "1.5e+3", "0x10", "1_000"]
)
def test_every_other_number_is_taken_as_ever(tmp_path, number):
    with_file(tmp_path, f"backends: {{a: {{type: mock, options: {{n: {number}}}}}}}")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("default_backend: no", 'put it in quotes: "no"'),
        ("default_backend: 1", 'put it in quotes: "1"'),
        ("supabase: {bucket: 2026-01-02}", 'put it in quotes: "2026-01-02"'),
        ("supabase: {bucket: 010}", 'put it in quotes: "010"'),
        ("supabase: {bucket: 1:30}", 'put it in quotes: "1:30"'),
        ("output: {dir: 2026}", 'put it in quotes: "2026"'),
        ("worker: {options: [on]}", 'put it in quotes: "on"'),
        ("worker: {backends: [mock, 1]}", 'put it in quotes: "1"'),
        ("styles: {x: {prefix: yes}}", 'put it in quotes: "yes"'),
        ("styles: {no: {prefix: x}}", 'put it in quotes: "no"'),
        ("backends: {1: {type: mock}}", 'put it in quotes: "1"'),
        ("backends: {2026-01-02: {type: mock}}", 'put it in quotes: "2026-01-02"'),
    ],
)
def test_text_that_yaml_reads_as_something_else_belongs_in_quotes(tmp_path, text, says):
    with pytest.raises(ConfigFault) as caught:
        with_file(tmp_path, text)
    assert says in str(caught.value.hint), caught.value.as_line()


def test_a_name_that_is_no_text_has_its_line(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("styles:\n  a: {prefix: x}\n  no: {prefix: x}\n")
    lines = loader.parse(path).lines
    assert lines["styles", "False"] == lines["styles", "no"] == 3


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("output: {}".encode("utf-16"), "UTF-16"),
        ("output: {}".encode("utf-16-le"), "UTF-16"),
        ("output: {}".encode("utf-16-be"), "UTF-16"),
        ("output: {}".encode("utf-32"), "UTF-32"),
        ("a: x\nstyles: {é: {prefix: ü}}".encode("latin-1"), "line 2: .*Latin-1"),
        ("a: x\n# “quoted”".encode("cp1252"), "line 2: .*Latin-1"),
    ],
)
def test_a_file_in_another_encoding_is_named_as_such(tmp_path, data, says):
    path = tmp_path / "mine.yaml"
    path.write_bytes(data)
    with pytest.raises(ConfigFault, match=says) as caught:
        loader.load(str(path))
    assert "UTF-8" in str(caught.value.hint)


def test_a_byte_order_mark_of_utf_8_is_passed_over(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_bytes("\ufeffdefault_backend: mock\n".encode())
    assert loader.load(str(path)).sources["default_backend"] == "file"


NESTED = "a: " + "[" * 900 + "]" * 900
LAUGHS = "a0: &a0 [x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("styles: &a {x: *a}", "line 1: .*itself"),
        ("backends:\n  m: &m\n    type: mock\n    options: {x: *m}", "line 2: .*itself"),
        ("a: &a [*a]", "line 1: .*itself"),
        (NESTED, "nested"),
        (NESTED.replace("[", "{b: ").replace("]", "}"), "nested"),
        (LAUGHS, "too many"),
        ("styles: {x: {prefix: !!binary aGk=}}", "line 1: .*bytes"),
        ("backends: {m: {type: mock, options: {x: [!!binary aGk=]}}}", "line 1: .*bytes"),
        ("!!binary aGk=: x", "line 1: .*bytes"),
        ("styles: !!set {x, y}", "styles"),
        ("output: {dir: !!set {x}}", "output.dir"),
        ("output: {dir: 0001-13-45}", "mine.yaml"),
    ],
)
def test_what_yaml_can_hold_and_a_configuration_cannot_is_one_line(tmp_path, text, says):
    with pytest.raises(ConfigFault, match=says) as caught:
        with_file(tmp_path, text)
    assert "\n" not in caught.value.as_line()
    assert len(caught.value.as_line()) < 400


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("supabase: {url: 'https://p.example.org/?apikey=hunter2'}", "supabase.url"),
        ("models: {url: 'https://mirror.example.org?token=hunter2'}", "models.url"),
        ("models: {url: 'https://mirror.example.org#hunter2'}", "models.url"),
    ],
)
def test_a_query_in_an_address_is_refused_and_never_shown(tmp_path, text, key):
    with pytest.raises(ConfigFault, match=key) as caught:
        with_file(tmp_path, text)
    assert "hunter2" not in caught.value.as_line()
