"""Names of models: which module answers to which, and what is said of those nobody knows."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loom.models import keys
from loom.models.address import ollama_url, split_url
from loom.models.base import ModelContext
from loom.models.registry import check_model, find_provider, open_model, split_name
from loom.wire import errors
from loom.wire.provider import Provider

LAB = Provider("lab", "openai", "http://lab:8000/v1")


def context(env: dict[str, str] | None = None, *providers: Provider, **more: object) -> ModelContext:
    return ModelContext(env=env or {}, providers={p.alias: p for p in providers}, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name, env, parts",
    [
        ("openai/gpt-4o", {}, ("openai", "gpt-4o")),
        ("openrouter/meta/llama-3:free", {}, ("openrouter", "meta/llama-3:free")),
        ("llama3.2:3b", {}, ("ollama", "llama3.2:3b")),
        ("gpt-4o", {"LOOM_DEFAULT_PROVIDER": "openai"}, ("openai", "gpt-4o")),
        ("lab/any/thing", {}, ("lab", "any/thing")),
        ("exec//bin/cat", {}, ("exec", "/bin/cat")),
        ("exec/./x", {}, ("exec", "./x")),
        ("exec/tr-upper", {}, ("exec", "tr-upper")),
        ("script/demo/a.ndjson", {}, ("script", "demo/a.ndjson")),
        ("builtin", {}, ("builtin", "")),
        ("builtin/echo", {}, ("builtin", "echo")),
    ],
)
def test_a_name_is_a_provider_and_the_rest(name, env, parts):
    assert split_name(name, context(env, LAB)) == parts


def test_the_default_provider_of_the_settings_goes_before_the_variable():
    assert split_name("m", context({"LOOM_DEFAULT_PROVIDER": "openai"}, LAB, default_provider="lab")) == ("lab", "m")


@pytest.mark.parametrize(
    "name, said",
    [
        ("opnai/gpt-4o", "did you mean 'openai'?"),
        ("laab/m", "did you mean 'lab'?"),
        ("meta-llama/llama-3", "ollama/meta-llama/llama-3"),
        ("openai", "openai/MODEL"),
        ("openai/", "openai/MODEL"),
        ("exec/", "exec/PROGRAM"),
        ("builtin/", "builtin/echo"),
        ("builtin/ecko", "did you mean 'echo'?"),
        ("", "ollama/llama3.2"),
        (" m", "no model name"),
        ("a\nb", "no model name"),
        ("/m", "no provider ''"),
    ],
)
def test_a_name_nobody_knows_is_a_usage_error_with_a_way_out(name, said):
    for tried in (open_model, check_model):
        with pytest.raises(errors.Usage) as caught:
            tried(name, context({}, LAB))
        assert said in caught.value.line()
        assert caught.value.exit_status == 2


def test_an_unknown_default_provider_is_a_matter_of_configuration():
    with pytest.raises(errors.Config, match="did you mean 'ollama'"):
        check_model("m", context({"LOOM_DEFAULT_PROVIDER": "olama"}))


def test_anthropic_speaks_its_own_dialect_where_the_environment_says():
    env = {"ANTHROPIC_API_KEY": "sk-x", "ANTHROPIC_BASE_URL": "http://127.0.0.1:9/"}
    check_model("anthropic/claude", context(env))
    model = open_model("anthropic/claude", context(env))
    assert (type(model).__name__, model.name) == ("AnthropicModel", "anthropic/claude")
    assert find_provider("anthropic", context(env)).base_url == "http://127.0.0.1:9/"
    with pytest.raises(errors.Config, match="ANTHROPIC_API_KEY"):
        check_model("anthropic/claude", context())


def test_an_unknown_dialect_is_refused():
    with pytest.raises(errors.Config, match="did you mean 'openai'"):
        check_model("x/m", context({}, Provider("x", "opena", "http://x")))


@given(st.text(max_size=30))
def test_any_name_gives_a_split_or_an_error_of_ours(name):
    try:
        prefix, _ = split_name(name, context({}, LAB))
        assert prefix in {"openai", "openrouter", "ollama", "anthropic", "exec", "script", "builtin", "lab"}
    except errors.LoomError:
        pass


@pytest.mark.parametrize("role, name", [("chat", "extract"), ("planner", "planner"), ("verifier", "verifier")])
def test_plain_builtin_is_the_one_of_the_role(role, name):
    assert open_model("builtin", context(), role).name == f"builtin/{name}"
    check_model("builtin", context())


# keys


def test_a_missing_key_names_every_way_to_set_it():
    for tried in (open_model, check_model):
        with pytest.raises(errors.Config) as caught:
            tried("openai/gpt-4o", context())
        assert caught.value.exit_status == 78
        for way in ("OPENAI_API_KEY", "loom secret set openai", "providers.openai.key_file"):
            assert way in caught.value.line()


def test_ollama_and_aliases_without_a_key_need_none():
    check_model("ollama/llama3", context())
    check_model("lab/m", context({}, LAB))
    assert open_model("llama3", context()).name == "ollama/llama3"


def key(ctx: ModelContext, alias: str = "openai") -> str:
    return keys.find_key(find_provider(alias, ctx), ctx)


def test_a_key_is_looked_for_in_variable_file_command_and_store_in_this_order(tmp_path):
    (tmp_path / "key").write_text("sk-file\n")
    by_file = Provider("openai", "", "", key_file="key", key_command=("echo", "sk-command"))
    by_command = Provider("openai", "", "", key_command=("echo", "sk-command"))
    env = {"PATH": os.environ["PATH"]}

    def store(name: str) -> str | None:
        return {"openai": "sk-store"}.get(name)

    more = {"cwd": str(tmp_path), "secret": store}
    assert key(context(env | {"OPENAI_API_KEY": "sk-env"}, by_file, **more)) == "sk-env"
    assert key(context(env, by_file, **more)) == "sk-file"
    assert key(context(env, by_command, **more)) == "sk-command"
    assert key(context(env, **more)) == "sk-store"


def test_an_alias_names_its_secret():
    lab = Provider("lab", "openai", "http://lab:8000/v1", key="my-lab")
    assert key(context({"MY_LAB_API_KEY": "sk-x"}, lab), "lab") == "sk-x"
    assert key(context({}, lab, secret={"my-lab": "sk-y"}.get), "lab") == "sk-y"


def test_a_key_file_may_lie_in_the_home_directory(tmp_path):
    (tmp_path / "key").write_text("sk-home")
    assert key(context({"HOME": str(tmp_path)}, Provider("openai", "", "", key_file="~/key"))) == "sk-home"


@pytest.mark.parametrize(
    "provider, said",
    [
        (Provider("openai", "", "", key_file="absent"), "cannot read the key of openai from absent"),
        (Provider("openai", "", "", key_file="empty"), "is empty"),
        (Provider("openai", "", "", key_file="two"), "is no key"),
        (Provider("openai", "", "", key_file="a\0b"), "cannot read"),
        (Provider("openai", "", "", key_command=("false",)), "status 1"),
        (Provider("openai", "", "", key_command=("no-such-program-here",)), "cannot run no-such-program-here"),
        (Provider("openai", "", "", key_command=("true",)), "is empty"),
    ],
)
def test_a_key_that_cannot_be_had_says_why(tmp_path, provider, said):
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "two").write_text("sk-one\nsk-two\n")
    with pytest.raises(errors.Config, match=said) as caught:
        key(context({"PATH": os.environ["PATH"]}, provider, cwd=str(tmp_path)))
    assert "sk-one" not in caught.value.line()


# addresses


@pytest.mark.parametrize(
    "host, url",
    [
        ("box", "http://box:11434/v1"),
        ("box:9999", "http://box:9999/v1"),
        (":9999", "http://127.0.0.1:9999/v1"),
        ("0.0.0.0", "http://127.0.0.1:11434/v1"),
        ("0.0.0.0:80", "http://127.0.0.1:80/v1"),
        ("[::1]", "http://[::1]:11434/v1"),
        ("::1", "http://[::1]:11434/v1"),
        ("[::1]:9999", "http://[::1]:9999/v1"),
        ("http://box", "http://box/v1"),
        ("http://box:9999/", "http://box:9999/v1"),
        ("https://box/ollama", "https://box/ollama/v1"),
        ("https://box/v1", "https://box/v1"),
    ],
)
def test_ollama_host_means_what_ollama_means(host, url):
    assert ollama_url(host) == url
    assert find_provider("ollama", context({"OLLAMA_HOST": host})).base_url == url


def test_the_environment_goes_before_the_settings_and_they_before_what_is_built_in():
    mine = Provider("openai", "", "http://mine/v1")
    assert find_provider("openai", context()).base_url == "https://api.openai.com/v1"
    assert find_provider("openai", context({}, mine)).base_url == "http://mine/v1"
    assert find_provider("openai", context({"OPENAI_BASE_URL": "http://env/v1"}, mine)).base_url == "http://env/v1"
    assert find_provider("openai", context({}, Provider("openai", "", "", key_file="f"))).dialect == "openai"


@pytest.mark.parametrize("url", ["", "lab:8000", "ftp://lab", "http://", "http://a b", "http://x:99999", "http://ü"])
def test_an_address_that_is_none_is_refused(url):
    with pytest.raises(errors.Config, match="base_url"):
        check_model("x/m", context({}, Provider("x", "openai", url)))


def test_an_address_with_a_password_is_refused_without_showing_it():
    with pytest.raises(errors.Config) as caught:
        split_url("http://me:geheim@lab/v1")
    assert "geheim" not in caught.value.line()


# start-up

HEAVY = ("http.client", "ssl", "socket", "json", "subprocess", "urllib.parse", "difflib", "email", "httpx", "orjson")


@pytest.mark.parametrize(
    "code, absent",
    [
        ("import loom.models.registry", HEAVY),
        (
            "from loom.models.registry import check_model; from loom.models.base import ModelContext; "
            "check_model('llama3', ModelContext(env={}))",
            ("http.client", "ssl", "socket", "json", "subprocess", "difflib", "httpx"),
        ),
        (
            "import loom.models.openai",
            ("http.client", "email", "ssl", "httpx", "orjson", "asyncio", "subprocess", "yaml"),
        ),
    ],
)
def test_only_what_was_chosen_is_loaded(code, absent):
    root = str(Path(__file__).parents[2])
    shown = f"{code}; import sys; print(*[m for m in {absent!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {root!r}); {shown}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == ""


def test_a_slip_in_builtin_is_not_taken_for_a_model_of_ollama():
    with pytest.raises(errors.Usage, match="did you mean 'builtin'"):
        check_model("bultin", ModelContext(env={}))
