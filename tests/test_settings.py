"""Settings: read from the environment only when asked, checked all at once, never telling a secret."""

import os
import traceback

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from taskflow.core.specs import Retry
from taskflow.errors import ConfigError
from taskflow.settings import (
    LEAVES,
    TASK_LEAVES,
    BrokerSettings,
    HttpSettings,
    Settings,
    TaskOverride,
    WorkerSettings,
    reference,
    unknown_variables,
)
from taskflow.settings.masking import mask_url
from taskflow.settings.reference import SCHEMES, env_name
from taskflow.settings.sections import is_loopback
from taskflow.settings.tuning import resolve

NO_BROKER = (
    "TASKFLOW_BROKER__URL: must be memory://, sqlite:///FILE, redis://HOST, rediss://HOST, unix:///SOCKET (Redis "
    "too), redis+sentinel://HOST,HOST/SERVICE, rediss+sentinel://HOST,HOST/SERVICE or postgresql://HOST/DATABASE (value hidden)"
)
# Every documented variable, a value for it, and how tables show that value.
SAMPLES = {
    "TASKFLOW_APP": ("shop.jobs:flow", "shop.jobs:flow"),
    "TASKFLOW_ENVIRONMENT": ("PROD", "prod"),
    "TASKFLOW_STRICT_ENV": ("1", "true"),
    "TASKFLOW_ENV_FILE": ("{env_file}", "{env_file}"),
    "TASKFLOW_BROKER__URL": ("sqlite:////var/lib/shop.db", "sqlite:////var/lib/shop.db"),
    "TASKFLOW_BROKER__NAMESPACE": ("shop-1", "shop-1"),
    "TASKFLOW_BROKER__SYNCHRONOUS": ("normal", "NORMAL"),
    "TASKFLOW_BROKER__BUSY_TIMEOUT_S": ("250ms", "0.25"),
    "TASKFLOW_WORKER__CONCURRENCY": ("7", "7"),
    "TASKFLOW_WORKER__QUEUES": ("mail:5, default", "mail:5,default"),
    "TASKFLOW_WORKER__PROCESSES": ("4", "4"),
    "TASKFLOW_WORKER__THREADS": ("3", "3"),
    "TASKFLOW_WORKER__CHILDREN": ("2", "2"),
    "TASKFLOW_WORKER__CHILD_MEMORY_BYTES": ("1073741824", "1073741824"),
    "TASKFLOW_WORKER__CHILD_CPU_S": ("5m", "300"),
    "TASKFLOW_WORKER__CHILD_JOBS": ("1000", "1000"),
    "TASKFLOW_WORKER__LEASE_S": ("0.1", "0.1"),
    "TASKFLOW_WORKER__DRAIN_S": ("0", "0"),
    "TASKFLOW_WORKER__MAX_LOST": ("1", "1"),
    "TASKFLOW_WORKER__PREFETCH": ("0", "0"),
    "TASKFLOW_QUEUE__MAX_SIZE": ("100_000", "100000"),
    "TASKFLOW_QUEUE__ON_FULL": ("Reject", "reject"),
    "TASKFLOW_QUEUE__WAIT_S": ("1m", "60"),
    "TASKFLOW_TASK__TIMEOUT_S": ("90s", "90"),
    "TASKFLOW_TASK__DEADLINE_S": ("1h", "3600"),
    "TASKFLOW_TASK__MAX_WAIT_S": ("1d", "86400"),
    "TASKFLOW_TASK__PRIORITY": ("9", "9"),
    "TASKFLOW_TASK__QUEUE": ("bulk", "bulk"),
    "TASKFLOW_RETRY__ATTEMPTS": ("1", "1"),
    "TASKFLOW_RETRY__BASE_S": ("1.5", "1.5"),
    "TASKFLOW_RETRY__FACTOR": ("3", "3"),
    "TASKFLOW_RETRY__MAX_DELAY_S": ("5m", "300"),
    "TASKFLOW_RETRY__JITTER": ("none", "none"),
    "TASKFLOW_BREAKER__FAILURE_RATE": ("0.25", "0.25"),
    "TASKFLOW_BREAKER__MIN_CALLS": ("20", "20"),
    "TASKFLOW_BREAKER__WINDOW_S": ("2m", "120"),
    "TASKFLOW_BREAKER__CONSECUTIVE": ("8", "8"),
    "TASKFLOW_BREAKER__SLOW_CALL_S": ("2", "2"),
    "TASKFLOW_BREAKER__SLOW_RATE": ("1", "1"),
    "TASKFLOW_BREAKER__OPEN_FOR_S": ("20", "20"),
    "TASKFLOW_BREAKER__MAX_OPEN_FOR_S": ("10m", "600"),
    "TASKFLOW_BREAKER__WINDOW_CALLS": ("50", "50"),
    "TASKFLOW_BREAKER__CLOSE_AFTER": ("1", "1"),
    "TASKFLOW_QUEUE__ARGUMENTS_MAX_BYTES": ("4096", "4096"),
    "TASKFLOW_RETENTION__RESULT_S": ("1d", "86400"),
    "TASKFLOW_RETENTION__RESULT_MAX_BYTES": ("1024", "1024"),
    "TASKFLOW_RETENTION__FINISHED_S": ("0", "0"),
    "TASKFLOW_RETENTION__DEAD_S": ("90d", "7776000"),
    "TASKFLOW_LOG__LEVEL": ("debug", "DEBUG"),
    "TASKFLOW_LOG__FORMAT": ("json", "json"),
    "TASKFLOW_HTTP__HOST": ("::1", "::1"),
    "TASKFLOW_HTTP__PORT": ("0", "0"),
    "TASKFLOW_HTTP__TOKEN": ("s3cret", "***"),
    "TASKFLOW_TASKS__<TASK>__BULKHEAD__LIMIT": ("2", "2"),
    "TASKFLOW_TASKS__<TASK>__RATE__LIMIT": ("100/m", "100/m"),
    "TASKFLOW_TASKS__<TASK>__RATE__BURST": ("5", "5"),
    "TASKFLOW_TASKS__<TASK>__RETRY__BUDGET__RATIO": ("0.1", "0.1"),
    "TASKFLOW_TASKS__<TASK>__RETRY__BUDGET__CAP": ("20", "20"),
}
for _tail in TASK_LEAVES:
    _shared = env_name(_tail if len(_tail) > 1 else ("task", *_tail))
    if _shared in SAMPLES:
        SAMPLES[f"TASKFLOW_TASKS__<TASK>__{'__'.join(_tail).upper()}"] = SAMPLES[_shared]


def _env(**values):
    """TASKFLOW_ variables without the prefix."""
    return {f"TASKFLOW_{name}": value for name, value in values.items()}


def _problems(env):
    with pytest.raises(ConfigError) as caught:
        Settings.from_env(env)
    return str(caught.value).splitlines()


def _load(env):
    """Settings, or the error."""
    try:
        return Settings.from_env(env)
    except ConfigError as error:
        return error


# --- reading ---------------------------------------------------------------------------------------------------------


def test_constructing_settings_reads_no_environment(monkeypatch):
    monkeypatch.setenv("TASKFLOW_WORKER__CONCURRENCY", "7")

    assert Settings().worker.concurrency == 100
    assert Settings(broker=BrokerSettings(url="memory://")).worker.concurrency == 100


def test_from_env_reads_the_environment_of_the_process_unless_given_another(monkeypatch):
    monkeypatch.setenv("TASKFLOW_WORKER__CONCURRENCY", "7")

    assert Settings.from_env().worker.concurrency == 7
    assert Settings.from_env({}).worker.concurrency == 100


def test_only_settings_reads_the_environment():
    from pathlib import Path

    import taskflow

    root = Path(taskflow.__file__).parent
    # Handing the whole of it on to a child process is not reading it.
    texts = {
        path.relative_to(root).as_posix(): path.read_text().replace("**os.environ", "") for path in root.rglob("*.py")
    }
    readers = {
        name
        for name, text in texts.items()
        if "environ." in text or "environ[" in text or "environ " in text or "getenv" in text
    }

    assert readers == {"settings/__init__.py"}


def test_the_defaults_are_the_documented_ones():
    s = Settings.from_env({})

    assert (s.worker.lease_s, s.worker.drain_s, s.worker.concurrency, s.worker.max_lost) == (10, 25, 100, 3)
    assert (s.task.timeout_s, s.task.deadline_s, s.task.max_wait_s) == (300, None, 7 * 86_400)
    assert (s.task.priority, s.task.queue) == (4, "default")
    assert (s.retry.attempts, s.retry.base_s, s.retry.factor, s.retry.max_delay_s, s.retry.jitter) == (
        3,
        0.5,
        2,
        60,
        "full",
    )
    assert (s.queue.max_size, s.queue.on_full, s.queue.wait_s) == (100_000, "wait", 30)
    assert s.queue.arguments_max_bytes == 2**20
    assert (s.retention.result_s, s.retention.result_max_bytes) == (3600, 2**20)
    assert (s.retention.finished_s, s.retention.dead_s) == (86_400, 30 * 86_400)
    assert s.broker.url.get_secret_value() == "sqlite:///taskflow.db"
    assert (s.http.host, s.http.port, s.http.token) == ("127.0.0.1", None, None)


@pytest.mark.parametrize("name", SAMPLES)
def test_every_documented_variable_can_be_set(name, tmp_path):
    env_file = tmp_path / "env"
    env_file.touch()
    text, shown = (part.replace("{env_file}", str(env_file)) for part in SAMPLES[name])
    variable = name.replace("<TASK>", "SEND_MAIL")

    found = Settings.from_env({variable: text})

    leaf = {leaf.name: leaf for leaf in found.leaves()}[variable]
    assert (leaf.value, leaf.source) == (shown, "environment")
    assert found.warnings == ()


def test_the_samples_are_all_there_is():
    assert {leaf.name for leaf in reference()} == set(SAMPLES)


def test_every_leaf_has_a_description_and_durations_and_sizes_a_unit():
    for leaf in reference():
        assert leaf.description.endswith(".")
        assert leaf.default
        assert leaf.unit == ("seconds" if leaf.name.endswith("_S") else "bytes" if "_BYTES" in leaf.name else "")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30", 30), ("1.5", 1.5), (".5", 0.5), ("90s", 90), ("5m", 300), ("1h", 3600), ("250ms", 0.25), ("2 d", 172_800)],
)
def test_durations_take_numbers_and_units(text, seconds):
    assert Settings.from_env(_env(TASK__TIMEOUT_S=text)).task.timeout_s == seconds
    assert Settings(task={"timeout_s": text}).task.timeout_s == seconds


@pytest.mark.parametrize(
    "text", ["soon", "5 minutes", "-1", "nan", "inf", "1e999", "1.2.3", "5M", "s", "0", "1h30m", "٣"]
)
def test_durations_refuse_the_rest_in_words(text):
    assert _problems(_env(TASK__TIMEOUT_S=text)) == [
        (
            "TASKFLOW_TASK__TIMEOUT_S: must be a duration above 0, at most 2592000 (seconds, or 250ms, 90s, 5m, 1h), "
            f"got {text!r}"
        )
    ]


@given(st.floats(min_value=0.001, max_value=2_592_000, allow_nan=False))
def test_any_duration_survives_being_written_down(seconds):
    assert Settings.from_env(_env(TASK__TIMEOUT_S=repr(seconds))).task.timeout_s == seconds
    assert Settings.from_env(_env(TASK__TIMEOUT_S=f"{seconds!r}s")).task.timeout_s == seconds


@pytest.mark.parametrize("word", ["none", "off"])
def test_a_limit_that_is_optional_can_be_switched_off_for_one_task(word):
    s = Settings.from_env(_env(TASK__DEADLINE_S="60", TASKS__A__DEADLINE_S=word))

    assert resolve(s, "a", {"deadline": 30}).deadline_s is None
    assert resolve(s, "b", {}).deadline_s == 60


def test_an_empty_variable_counts_as_not_set():
    s = Settings.from_env(_env(WORKER__CONCURRENCY="", WORKER__LEASE_S=" ", HTTP__TOKEN="\n"))

    assert s == Settings()


@pytest.mark.parametrize(("name", "default"), [("URL", "sqlite:///taskflow.db"), ("NAMESPACE", "taskflow")])
@pytest.mark.parametrize("nothing", ["", " ", "\n"])
def test_a_variable_that_says_where_jobs_live_may_not_be_empty(name, default, nothing):
    with pytest.raises(ConfigError) as raised:
        Settings.from_env(_env(**{f"BROKER__{name}": nothing}))

    assert str(raised.value) == f"TASKFLOW_BROKER__{name}: is empty; set it, or unset it for {default}"


def test_where_jobs_live_may_be_empty_in_one_place_if_another_says_it(tmp_path):
    (tmp_path / "said.env").write_text("TASKFLOW_BROKER__URL=redis://cache\n")
    (tmp_path / "empty.env").write_text("TASKFLOW_BROKER__URL=\n")

    in_file = Settings.from_env(_env(BROKER__URL="", ENV_FILE=str(tmp_path / "said.env")))

    assert in_file.broker.scheme == "redis"
    with pytest.raises(ConfigError, match="TASKFLOW_BROKER__URL: is empty"):
        Settings.from_env(_env(ENV_FILE=str(tmp_path / "empty.env")))


def test_space_around_a_value_does_not_count():
    assert Settings.from_env(_env(HTTP__TOKEN="s3cret\n")).http.token.get_secret_value() == "s3cret"


def test_names_do_not_care_about_case_and_upper_case_wins():
    assert Settings.from_env({"taskflow_worker__concurrency": "5"}).worker.concurrency == 5
    both = {
        "taskflow_worker__concurrency": "5",
        "TASKFLOW_WORKER__CONCURRENCY": "6",
        "Taskflow_Worker__Concurrency": "7",
    }
    assert Settings.from_env(both).worker.concurrency == 6


def test_settings_and_sections_are_frozen_and_closed():
    s = Settings()

    with pytest.raises(ValueError, match="frozen"):
        s.app = "x"
    with pytest.raises(ValueError, match="frozen"):
        s.worker.concurrency = 5
    with pytest.raises(ConfigError, match="there is no such setting"):
        Settings(worker={"concurency": 5})


@pytest.mark.parametrize(
    ("text", "queues"),
    [
        ("mail:5,default", (("mail", 5), ("default", 1))),
        (" mail : 5 , default ,", (("mail", 5), ("default", 1))),
        ("a", (("a", 1),)),
    ],
)
def test_queues_have_weights(text, queues):
    assert Settings.from_env(_env(WORKER__QUEUES=text)).worker.queues == queues
    assert WorkerSettings(queues=queues).queues == queues


@pytest.mark.parametrize("text", ["a:0", "a:101", "a:b", ":5", "a,a", "a:1:2:x", "a:"])
def test_queues_refuse_the_rest_in_words(text):
    assert _problems(_env(WORKER__QUEUES=text)) == [
        (
            "TASKFLOW_WORKER__QUEUES: must be queue names with optional weights from 1 to 100, each once, "
            f"as in mail:5,default, got {text!r}"
        )
    ]


@pytest.mark.parametrize("value", [5, [5], [("a", 0)], [("a", "b", "c")], {"a": 5}])
def test_queues_from_code_are_checked_too(value):
    with pytest.raises(ConfigError, match=r"WorkerSettings\.queues: must be queue names"):
        WorkerSettings(queues=value)


def test_threads_follow_concurrency_unless_said():
    assert WorkerSettings(concurrency=8).threads == 8
    assert WorkerSettings(concurrency=500).threads == 32
    assert WorkerSettings(concurrency=8, threads=20).threads == 20
    assert Settings().replace(worker={"concurrency": 4}).worker.threads == 4


def test_the_environment_word_sets_the_defaults_of_the_log_and_nothing_more():
    def of(**env):
        log = Settings.from_env(_env(**env)).log
        return log.level, log.format

    assert of() == ("INFO", "console")
    assert of(ENVIRONMENT="prod") == ("INFO", "json")
    assert of(ENVIRONMENT="prod", LOG__FORMAT="console", LOG__LEVEL="debug") == ("DEBUG", "console")
    assert {leaf.name: leaf.source for leaf in Settings(environment="prod").leaves()}[
        "TASKFLOW_LOG__FORMAT"
    ] == "default"


# --- the env file ------------------------------------------------------------------------------------------------------


def test_the_environment_wins_over_the_env_file(tmp_path):
    file = tmp_path / "settings.env"
    file.write_text(
        "# comment\nexport TASKFLOW_WORKER__CONCURRENCY=5\nTASKFLOW_TASK__TIMEOUT_S='20'\nPATH=/nowhere\n"
        'TASKFLOW_BROKER__URL="sqlite:////p${x}#w.db"\n'
    )

    s = Settings.from_env(_env(ENV_FILE=str(file), TASK__TIMEOUT_S="30", RETRY__ATTEMPTS=""))

    assert (s.worker.concurrency, s.task.timeout_s) == (5, 30)
    assert s.broker.url.get_secret_value() == "sqlite:////p${x}#w.db", "nothing is expanded"
    sources = {leaf.name: leaf.source for leaf in s.leaves()}
    assert sources["TASKFLOW_WORKER__CONCURRENCY"] == "env file"
    assert sources["TASKFLOW_TASK__TIMEOUT_S"] == "environment"
    assert s.warnings == ()


def test_an_env_file_is_checked_like_the_environment(tmp_path):
    file = tmp_path / "settings.env"
    file.write_text("TASKFLOW_WORKER__CONCURENCY=5\nTASKFLOW_STRICT_ENV=1\nTASKFLOW_WORKER__LEASE_S=x\n= what?\n")

    lines = _problems(_env(ENV_FILE=str(file)))

    assert f"{file}, line 4: must be NAME=value" in lines
    assert any(line.startswith("TASKFLOW_WORKER__LEASE_S: must be") for line in lines)
    assert any(line.startswith("TASKFLOW_WORKER__CONCURENCY: there is no such setting") for line in lines)


def test_an_env_file_that_cannot_be_read_is_a_problem(tmp_path):
    missing = tmp_path / "missing"
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe\x00")

    assert _problems(_env(ENV_FILE=str(missing))) == [
        f"TASKFLOW_ENV_FILE: cannot read {str(missing)!r}: No such file or directory"
    ]
    assert _problems(_env(ENV_FILE=str(binary))) == [
        f"TASKFLOW_ENV_FILE: cannot read {str(binary)!r}: it is not UTF-8 text"
    ]


# --- problems ----------------------------------------------------------------------------------------------------------


def test_all_problems_are_told_at_once_with_the_names_of_their_variables():
    lines = _problems(
        _env(
            WORKER__CONCURRENCY="many",
            WORKER__LEASE_S="0.05",
            QUEUE__ON_FULL="explode",
            STRICT_ENV="perhaps",
            LOG__LEVEL="loud",
            HTTP__HOST="0.0.0.0",
            BROKER__URL="mysql://u:hunter2@h/db",
            TASKS__SEND_MAIL__RETRY__ATTEMPTS="0",
            TASKS__SEND_MAIL__RATE__LIMIT="lots",
        )
    )

    assert set(lines) == {
        "TASKFLOW_WORKER__CONCURRENCY: must be a whole number from 1 to 100000, got 'many'",
        "TASKFLOW_WORKER__LEASE_S: must be a duration from 0.1 to 3600 (seconds, or 250ms, 90s, 5m, 1h), got '0.05'",
        "TASKFLOW_QUEUE__ON_FULL: must be wait or reject, got 'explode'",
        "TASKFLOW_STRICT_ENV: must be true or false, got 'perhaps'",
        "TASKFLOW_LOG__LEVEL: must be TRACE, DEBUG, INFO, WARNING, ERROR or CRITICAL, got 'loud'",
        (
            "TASKFLOW_HTTP__TOKEN: must be set, because TASKFLOW_HTTP__HOST '0.0.0.0' can be reached from other machines "
            "(or set the host to 127.0.0.1)"
        ),
        NO_BROKER,
        "TASKFLOW_TASKS__SEND_MAIL__RETRY__ATTEMPTS: must be a whole number from 1 to 10000, got '0'",
        "TASKFLOW_TASKS__SEND_MAIL__RATE__LIMIT: must be a count per s, m, h or d, as in 100/m, got 'lots'",
    }


@pytest.mark.parametrize("name", [name for name in SAMPLES if SAMPLES[name][1] not in ("shop.jobs:flow", "***", "::1")])
def test_nonsense_in_any_variable_is_one_line_in_plain_words(name):
    if name.endswith("ENV_FILE"):
        return
    variable = name.replace("<TASK>", "SEND_MAIL")

    lines = _problems({variable: "\x00 no \x1b sense"})

    assert len(lines) == 1
    assert lines[0].startswith(f"{variable}: must ")
    assert not any(word in lines[0] for word in ("pydantic", "Input", "validation", "type=", "literal", "\x1b", "\x00"))


@given(st.dictionaries(st.sampled_from(sorted(SAMPLES)), st.text(max_size=12), max_size=6))
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_whatever_the_environment_holds_the_only_error_is_a_config_error(values):
    env = {name.replace("<TASK>", "A"): text for name, text in values.items() if "ENV_FILE" not in name}

    found = _load(env)

    assert isinstance(found, Settings) or all(line.startswith("TASKFLOW_") for line in str(found).splitlines())


def test_problems_in_code_are_config_errors_that_name_the_setting():
    with pytest.raises(ConfigError) as caught:
        Settings(worker={"concurrency": 0, "lease_s": 0})

    assert str(caught.value).splitlines() == [
        "WorkerSettings.concurrency: must be a whole number from 1 to 100000, got 0",
        "WorkerSettings.lease_s: must be a duration from 0.1 to 3600 (seconds, or 250ms, 90s, 5m, 1h), got 0",
    ]
    assert caught.value.code == "config_error"


@pytest.mark.parametrize(
    "url", ["sqlite://", "sqlite:///", "sqlite:////tmp/", "sqlite://x.db", "sqlite:///x.db?mode=ro"]
)
def test_a_sqlite_url_names_a_file(url):
    assert _problems(_env(BROKER__URL=url)) == [
        (
            "TASKFLOW_BROKER__URL: must name a file, without ?options: sqlite:///relative.db or "
            "sqlite:////absolute/path.db (value hidden)"
        )
    ]


def test_settings_that_contradict_each_other_are_refused():
    assert _problems(_env(BREAKER__OPEN_FOR_S="400")) == [
        "TASKFLOW_BREAKER__MAX_OPEN_FOR_S: must be at least TASKFLOW_BREAKER__OPEN_FOR_S (400), got 300"
    ]
    assert _problems(_env(WORKER__PREFETCH="6", WORKER__CONCURRENCY="5")) == [
        "TASKFLOW_WORKER__PREFETCH: must be at most the concurrency (5), got 6"
    ]
    assert _problems(_env(WORKER__PROCESSES="2", BROKER__URL="memory://")) == [
        "TASKFLOW_WORKER__PROCESSES: must be 1 with memory://, whose jobs live in one process, got 2"
    ]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org", "", "localhost.example.org", "[::]"])
def test_an_address_that_others_reach_needs_a_token(host):
    with pytest.raises(ConfigError, match="TASKFLOW_HTTP__TOKEN: must be set"):
        HttpSettings(host=host)
    with pytest.raises(ConfigError, match="TASKFLOW_HTTP__TOKEN: must be set"):
        HttpSettings(host=host, token="")

    assert HttpSettings(host=host, token="t").host == host
    assert not is_loopback(host)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "[::1]", "localhost", "LOCALHOST"])
def test_a_loopback_address_needs_none(host):
    assert HttpSettings(host=host).token is None


# --- secrets -----------------------------------------------------------------------------------------------------------

# Three recognizable pieces, joined by whatever confuses parsers of URLs: no piece may be seen anywhere.
PIECES = ("Zq7xk", "Wv9jb", "Kp4fy")
passwords = st.tuples(*[st.text("@/?#:[]%&=+;, .-_~1'\"\\", max_size=4)] * 4).map(
    lambda junk: junk[0] + PIECES[0] + junk[1] + PIECES[1] + junk[2] + PIECES[2] + junk[3]
)
secret_urls = st.builds(
    "{}://{}:{}@{}".format,
    st.sampled_from(["redis", "rediss", "postgresql", "mysql", "sqlite", "memory", "REDIS", ""]),
    st.sampled_from(["", "app", "we.ird", "a%40b"]),
    passwords,
    st.sampled_from(["cache:6379/0", "h1:1,h2:2/db?sslmode=require", "[::1]:6379", ""]),
)


def _assert_hidden(*texts):
    for text in texts:
        for piece in PIECES:
            assert piece not in text


@given(secret_urls, passwords, st.booleans())
@example("redis://:Zq7xk/Wv9jb?Kp4fy@h", "memory://Zq7xk", True)
def test_no_password_and_no_token_is_ever_seen(url, token, broken):
    env = _env(BROKER__URL=url, HTTP__TOKEN=token, **({"WORKER__CONCURRENCY": "x"} if broken else {}))

    s = _load(env)

    if isinstance(s, ConfigError):
        _assert_hidden(str(s), repr(s), *traceback.format_exception(s))
        assert s.__context__ is None, "the pydantic error holds its input"
        return
    _assert_hidden(repr(s), str(s), s.model_dump_json(), str(s.leaves()), s.broker.shown_url, str(s.model_dump()))
    assert s.broker.url.get_secret_value() == url.strip()


@given(secret_urls.filter(lambda url: not url.startswith("sqlite://")))  # a file has no password
def test_no_password_is_seen_in_a_masked_url(url):
    _assert_hidden(mask_url(url))


@given(passwords, st.sampled_from(["password", "sentinel_password", "sslpassword", "db", "sslmode", "listen", "x", ""]))
def test_no_option_that_may_be_a_secret_is_seen_in_a_masked_url(secret, name):
    _assert_hidden(mask_url(f"redis://cache?db=0&{name}={secret}"), mask_url(f"redis://cache?{secret}={name}"))


@pytest.mark.parametrize("scheme", ["mysql", "hunter2@", ""])
def test_a_broker_that_does_not_exist_is_refused_with_those_that_do(scheme):
    assert _problems(_env(BROKER__URL=f"{scheme}://app:hunter2@cache:6379/3")) == [NO_BROKER]


@pytest.mark.parametrize(
    ("scheme", "meant"),
    [
        ("redsi", "redis"), ("SQLITE", "sqlite"), ("postgre", "postgresql"), ("psql", "postgresql"),
        ("postgresql+asyncpg", "postgresql"), ("postgresql+psycopg", "postgresql"), ("postgres+asyncpg", "postgresql"),
        ("valkey", "redis"), ("valkeys", "rediss"), ("redis+sentinels", "rediss+sentinel"),
        ("rediss+sentinels", "rediss+sentinel"), ("redis+sentinal", "redis+sentinel"),
    ],
)  # fmt: skip
def test_a_broker_that_is_misspelt_is_refused_with_the_nearest_that_exists(scheme, meant):
    (problem,) = _problems(_env(BROKER__URL=f"{scheme}://app:hunter2@cache:6379/3"))

    assert problem == NO_BROKER.replace(" (value", f"; did you mean {meant}://? (value")


def test_every_broker_that_exists_is_offered():
    shown = " ".join(leaf.description for leaf in reference())

    assert all(f"{scheme}://" in shown for scheme in SCHEMES)


@given(secret_urls, passwords)
def test_no_secret_is_seen_in_an_error_from_code(url, token):
    for build in (
        lambda: Settings(broker={"url": url, "surplus": url}),
        lambda: Settings(broker={"url": f"nope{url}"}),
        lambda: Settings(broker=url),
        lambda: BrokerSettings(url=f"nope{url}"),
        lambda: HttpSettings(host="0.0.0.0", token="", port=token),
        lambda: HttpSettings(token=[token]),
        lambda: Settings().replace(broker={"url": f"nope{url}"}),
    ):
        with pytest.raises(ConfigError) as caught:
            build()
        if "port" not in str(caught.value):  # a port is no secret, but a DSN put there by mistake is
            _assert_hidden(str(caught.value), *traceback.format_exception(caught.value))


@given(secret_urls)
def test_a_broker_url_in_the_wrong_variable_is_hidden_too(url):
    _assert_hidden(*_problems(_env(WORKER__CONCURRENCY=url)))
    _assert_hidden(*_problems(_env(LOG__LEVEL=url)))


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("memory://", "memory://"),
        ("sqlite:////var/lib/taskflow/x.db", "sqlite:////var/lib/taskflow/x.db"),
        ("redis://cache:6379/0", "redis://cache:6379/0"),
        ("redis://:pw@cache:6379/0", "redis://***@cache:6379/0"),
        ("redis://alone@cache", "redis://***@cache"),
        ("rediss://app:pw@[2001:db8::1]:6379/0", "rediss://app:***@[2001:db8::1]:6379/0"),
        ("postgresql://app:pw@a:1,b:2/shop?password=pw", "postgresql://app:***@a:1,b:2/shop?***"),
        ("redis+sentinel://:pw@a:1,b:2/main?sentinel_password=pw", "redis+sentinel://***@a:1,b:2/main?***"),
        (
            "postgresql://app:pw@db/shop?listen=off&sslmode=require",
            "postgresql://app:***@db/shop?listen=off&sslmode=require",
        ),
        ("redis://cache?db=0&socket_timeout=0.5", "redis://cache?db=0&socket_timeout=0.5"),
        ("postgresql://db/shop?sslpassword=pw&listen=off", "postgresql://db/shop?listen=off&***"),
        ("redis://cache?db=pw&password=1", "redis://cache?***"),
        ("postgresql://db/shop?sslmode=pw&hunter2=1&sslrootcert=/ca.pem", "postgresql://db/shop?***"),
        ("redis://cache?db=1%70w&DB=1&=1&db", "redis://cache?***"),
        ("redis://app:p@w@cache", "redis://***"),
        ("redis://app:pw", "redis://***"),
        ("what is this", "***"),
    ],
)
def test_a_masked_url_still_says_where(url, shown):
    assert mask_url(url) == shown


# --- misspelt names ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("TASKFLOW_WORKER__CONCURENCY", "TASKFLOW_WORKER__CONCURRENCY"),
        ("TASKFLOW_CONCURENCY", "TASKFLOW_WORKER__CONCURRENCY"),
        ("TASKFLOW_WORKER_CONCURRENCY", "TASKFLOW_WORKER__CONCURRENCY"),
        ("TASKFLOW_BROKER_URL", "TASKFLOW_BROKER__URL"),
        ("TASKFLOW_TASK__TIMEOUT", "TASKFLOW_TASK__TIMEOUT_S"),
        ("TASKFLOW_TASK__RETRY__ATTEMPTS", "TASKFLOW_RETRY__ATTEMPTS"),
        ("TASKFLOW_ENVIROMENT", "TASKFLOW_ENVIRONMENT"),
        ("TASKFLOW_HTTP_PORT", "TASKFLOW_HTTP__PORT"),
        ("TASKFLOW_TASKS__SEND_MAIL__TIMEOUT", "TASKFLOW_TASKS__SEND_MAIL__TIMEOUT_S"),
        ("TASKFLOW_TASKS__SEND_MAIL_TIMEOUT_S", "TASKFLOW_TASKS__SEND_MAIL__TIMEOUT_S"),
        ("TASKFLOW_TASKS_SEND_MAIL_RETRY_ATTEMPTS", "TASKFLOW_TASKS__SEND_MAIL__RETRY__ATTEMPTS"),
        ("TASKFLOW_TASKS__SEND_MAIL__RETRI__ATTEMPTS", "TASKFLOW_TASKS__SEND_MAIL__RETRY__ATTEMPTS"),
        ("TASKFLOW_XYZZY", None),
        ("TASKFLOW_TASKS__SEND_MAIL__XYZZY", None),
        ("TASKFLOW_TASKS", None),
        ("TASKFLOW_", None),
    ],
)
def test_a_misspelt_name_is_told_with_the_nearest_right_one(name, right):
    env = {name: "5", "PATH": "/bin", "TASKFLOWER": "x"}

    (found,) = unknown_variables(env)

    assert (found.name, found.suggestion) == (name, right)
    assert Settings.from_env(env).warnings == (str(found),)
    assert (f"did you mean {right}?" if right else "config reference") in str(found)
    assert _problems({**env, "TASKFLOW_STRICT_ENV": "1"}) == [str(found)]


@given(st.sampled_from(sorted(set(SAMPLES) - {"TASKFLOW_APP"})), st.data())
def test_one_lost_letter_is_always_told_with_a_suggestion(name, data):
    right = name.replace("<TASK>", "SEND_MAIL")
    key = right.removeprefix("TASKFLOW_").rpartition("__")[2]
    at = data.draw(st.integers(len(right) - len(key), len(right) - 1))
    wrong = right[:at] + right[at + 1 :]

    found = unknown_variables({wrong: "1"})

    assert [misspelt.name for misspelt in found] == [wrong]
    assert found[0].suggestion is not None


def test_what_kubernetes_injects_for_a_service_named_taskflow_is_no_misspelling():
    env = {
        "TASKFLOW_SERVICE_HOST": "10.0.0.1",
        "TASKFLOW_SERVICE_PORT": "80",
        "TASKFLOW_SERVICE_PORT_HTTP": "80",
        "TASKFLOW_PORT": "tcp://10.0.0.1:80",
        "TASKFLOW_WORKER_PORT_80_TCP": "tcp://10.0.0.1:80",
        "TASKFLOW_WORKER_PORT_80_TCP_ADDR": "10.0.0.1",
        "TASKFLOW_STRICT_ENV": "1",
    }

    assert Settings.from_env(env).warnings == ()


# --- sources -----------------------------------------------------------------------------------------------------------


def test_every_leaf_knows_its_source(tmp_path):
    file = tmp_path / "env"
    file.write_text("TASKFLOW_TASKS__A__TIMEOUT_S=5\n")
    s = Settings.from_env(_env(ENV_FILE=str(file), WORKER__CONCURRENCY="100", WORKER__LEASE_S="5")).replace(
        worker={"lease_s": 6}, http={"port": 0}
    )

    sources = {leaf.name: leaf.source for leaf in s.leaves() if leaf.source != "default"}

    assert sources == {
        "TASKFLOW_ENV_FILE": "environment",
        "TASKFLOW_WORKER__CONCURRENCY": "environment",
        "TASKFLOW_WORKER__LEASE_S": "code",
        "TASKFLOW_HTTP__PORT": "code",
        "TASKFLOW_TASKS__A__TIMEOUT_S": "env file",
    }


def test_leaves_of_settings_from_code_say_so():
    s = Settings(worker=WorkerSettings(concurrency=5), tasks={"Mail.Send": TaskOverride(timeout_s=5)})

    assert {leaf.name for leaf in s.leaves() if leaf.source == "code"} == {
        "TASKFLOW_WORKER__CONCURRENCY",
        "TASKFLOW_TASKS__MAIL_SEND__TIMEOUT_S",
    }


def test_a_task_without_overrides_has_only_defaults():
    assert Settings().source(("tasks", "a", "retry", "attempts")) == "default"


def test_what_a_terminal_would_obey_is_printed_escaped():
    assert Settings(app="\x1b[2J").leaves()[0].value == "'\\x1b[2J'"


def test_replace_checks_and_keeps_the_rest():
    s = Settings.from_env(
        _env(WORKER__LEASE_S="5", BROKER__URL="sqlite:////pw.db", TASKS__A__RETRY__ATTEMPTS="9", OOPS="1")
    )

    other = s.replace(app="x", worker={"concurrency": 3})

    assert (other.app, other.worker.concurrency, other.worker.lease_s) == ("x", 3, 5)
    assert other.broker == s.broker
    assert other.warnings == s.warnings != ()
    assert resolve(other, "a", {}).retry.attempts == 9
    assert resolve(other, "a", {"retry": Retry(base=9)}).retry.base == 9
    with pytest.raises(ConfigError, match="concurrency"):
        s.replace(worker={"concurrency": 0})


def test_leaves_cover_every_setting():
    names = {leaf.name for leaf in Settings().leaves()}

    assert names == {env_name(path) for path in LEAVES}
    assert names == {leaf.name for leaf in reference() if "<TASK>" not in leaf.name}


def test_this_file_does_not_depend_on_the_environment_it_runs_in():
    assert not [name for name in os.environ if name.startswith("TASKFLOW_")]
