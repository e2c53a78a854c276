"""Jobs from the shell: an id on stdout, the same one where it is the same job, and one line that helps where it is none."""

import json

import pytest

from tests.cli.processes import Place


@pytest.fixture
def place(tmp_path):
    with Place(tmp_path) as place:
        yield place


def shown(place, job_id):
    return place.ask(lambda broker: broker.show(job_id))


# --- one job -----------------------------------------------------------------------------------------------------------


def test_the_id_of_the_job_is_all_of_stdout(place):
    result = place.run("submit", "app", "work", '{"number": 1}')

    (job,) = place.jobs()
    assert (result.code, result.out, result.err) == (0, f"{job.id}\n", "")
    assert (job.task, job.state, job.queue) == ("work", "ready", "default")


def test_json_names_the_id(place):
    result = place.here("submit", "app", "work", "[1]", "--json")

    (job,) = place.jobs()
    assert (result.code, json.loads(result.out)) == (0, {"id": job.id})


def test_the_same_key_is_the_same_job(place):
    first, second = (place.run("submit", "app", "work", "[1]", "--key", "one") for _ in range(2))

    assert (first.code, second.code) == (0, 0)
    assert first.out == second.out
    assert len(place.jobs()) == 1


def test_delay_and_priority_are_the_jobs(place):
    result = place.here("submit", "app", "work", "[1]", "--delay", "60", "--priority", "9")

    job = shown(place, result.out.strip())
    assert (job.state, job.priority) == ("scheduled", 9)
    assert job.due_at - job.submitted_at == pytest.approx(60, abs=1)


# --- waiting for it ----------------------------------------------------------------------------------------------------


def test_wait_prints_the_result_or_why_there_is_none(place):
    place.start("worker", "app")
    plain = place.run("submit", "app", "send_mail", '{"to": "ada"}', "--wait")
    as_json = place.run("submit", "app", "work", "[7]", "--wait", "--json")
    dead = place.run("submit", "app", "refuse", "[2]", "--wait")
    dead_json = place.run("submit", "app", "refuse", "[2]", "--wait", "--json")

    assert (plain.code, json.loads(plain.out)) == (0, {"to": "ada"})
    assert (as_json.code, json.loads(as_json.out)["result"]) == (0, 7)
    assert (dead.code, dead.out) == (1, "")
    assert dead.err.endswith("ValueError: 2 is even\n")
    assert (dead_json.code, json.loads(dead_json.out)["error"]["code"]) == (1, "job_failed")


def test_wait_waits_no_longer_than_its_timeout(place):
    result = place.run("submit", "app", "work", "[1]", "--wait", "--timeout", "0.1")

    assert (result.code, result.out) == (1, "")
    assert "not final after 0.1 s" in result.err
    assert "Traceback" not in result.err


# --- a file ------------------------------------------------------------------------------------------------------------


def test_a_file_that_is_submitted_again_meets_its_own_jobs(place):
    file = place.file("[1]", "", '{"number": 2}')
    first = place.here("submit", "app", "work", "--jsonl", file)
    second = place.here("submit", "app", "work", "--jsonl", file, "--json")

    assert (first.code, first.out) == (0, "2\n")
    assert (second.code, json.loads(second.out)) == (0, {"submitted": 2, "file": "jobs.jsonl"})
    assert len(place.jobs()) == 2


def test_a_bad_line_is_named_and_nothing_of_its_file_is_submitted(place):
    result = place.here("submit", "app", "work", "--jsonl", place.file("[1]", "", '{"numbr": 2}'))

    assert (result.code, result.out) == (2, "")
    assert "jobs.jsonl, line 3: " in result.err
    assert not (place.folder / "jobs.db").exists()


def test_all_bad_lines_are_told_at_once_the_first_five_by_name(place):
    lines = ["[1]", *["{bad"] * 7]

    result = place.here("submit", "app", "work", "--jsonl", place.file(*lines))

    told = result.err.splitlines()
    assert (result.code, result.out) == (2, "")
    assert [line.partition(", line ")[2][:1] for line in told[:5]] == ["2", "3", "4", "5", "6"]
    assert told[5:] == ["taskflow: … and 2 more of its 8 lines are no jobs"]


def test_a_file_that_does_not_fit_is_told_how_much_of_it_is_in(tmp_path):
    with Place(tmp_path, QUEUE__MAX_SIZE=3, QUEUE__ON_FULL="reject") as place:
        result = place.here("submit", "app", "work", "--jsonl", place.file(*(f"[{number}]" for number in range(5))))
        kept = len(place.jobs())

    assert (result.code, result.out) == (5, "")
    assert f"taskflow: at least {kept} of 5 lines are submitted; the same command submits the rest" in result.err


# --- what is no job ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "helps"),
    [
        (["work", "{number: 1}"], "JSON-ARGS: no JSON"),
        (["work", "7"], "a JSON object (by name) or array (by position), got a number"),
        (["work", "null"], "got null"),
        (["work", '{"numbr": 1}'], "numbr"),
        (["work", '{"number": "many"}'], "number"),
        (["work", "[1, 2, 3]"], "work"),
        (
            ["wrok", "[1]"],
            "no task named 'wrok'; did you mean 'work'? known: flaky, gated, interrupt, refuse, send_mail, stay, wait, work",
        ),
        (
            ["quite_another", "[1]"],
            "no task named 'quite_another'; known: flaky, gated, interrupt, refuse, send_mail, stay, wait, work",
        ),
        (["work", "--jsonl", "nowhere.jsonl"], "--jsonl nowhere.jsonl: cannot be read"),
    ],
)
def test_what_is_no_job_is_exit_2_and_one_line_that_helps(place, words, helps):
    result = place.here("submit", "app", *words)

    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("taskflow: ")
    assert helps in result.err
    assert len(result.err.splitlines()) == 1
    assert list(place.folder.glob("*.db")) == []


def test_a_key_of_a_whole_file_is_refused(place):
    result = place.here("submit", "app", "work", "--jsonl", place.file("[1]"), "--key", "one")

    assert result.code == 2
    assert "--key and --wait are for one job" in result.err


def test_memory_is_refused_since_its_jobs_would_die_with_the_command(tmp_path):
    with Place(tmp_path, BROKER__URL="memory://") as place:
        result = place.run("submit", "app", "work", "[1]")

    assert result.code == 2
    assert "refuses memory://" in result.err


def test_a_broker_that_cannot_be_reached_is_exit_3(tmp_path):
    with Place(tmp_path, BROKER__URL="sqlite:///no/such/folder/jobs.db") as place:
        result = place.run("submit", "app", "work", "[1]")

    assert (result.code, result.out) == (3, "")
    assert "its folder must exist" in result.err
    assert len(result.err.splitlines()) == 1
