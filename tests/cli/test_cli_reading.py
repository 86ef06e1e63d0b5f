from __future__ import annotations

import cProfile
import json
import subprocess
import sys
from pathlib import Path

import pytest
from cli_sample import Sample, agl, build

from agentlightning.cli import rollout_list
from agentlightning.store import open_store


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    return build(tmp_path_factory.mktemp("cli"))


def lines(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines() if line.strip()]


def test_rollouts_lists_the_newest_first(sample: Sample) -> None:
    done = agl("rollouts", "--store", sample.url)
    assert done.code == 0
    cells = [line.split()[:2] for line in lines(done.out)[1:]]
    assert cells == [
        [sample.queued, "queuing"],
        [sample.cut, "running"],
        [sample.retried, "succeeded"],
        [sample.solved, "succeeded"],
    ]


@pytest.mark.parametrize("width", [60, 200])
def test_a_list_of_twice_as_many_rollouts_costs_twice_as_much(sample: Sample, width: int) -> None:
    row = json.loads(agl("rollouts", "--json", "--store", sample.url, sample.solved).out)[0]

    def calls(number: int) -> int:
        profile = cProfile.Profile()
        profile.runcall(lambda: list(rollout_list.lines([row] * number, width, 0.0)))
        return sum(each.callcount for each in profile.getstats())

    calls(1)  # what is done once: imports, compiled patterns
    assert calls(200) < 2.2 * calls(100)


def test_a_narrow_terminal_cuts_no_id(sample: Sample) -> None:
    listed = agl("rollouts", "--store", sample.url, columns=80).out
    assert max(map(len, listed.splitlines())) <= 80
    for rollout_id in (sample.solved, sample.retried, sample.cut, sample.queued):
        assert rollout_id in listed
    assert "0000000000000004" in agl("explain", sample.solved, "--store", sample.url, columns=80).out


def test_rollouts_as_json_has_reward_spans_and_receipt_of_the_latest_attempt(sample: Sample) -> None:
    rows = {
        row["rollout_id"]: row for row in json.loads(agl("rollouts", "--json", "--store", sample.url).out)
    }
    solved, retried, cut = rows[sample.solved], rows[sample.retried], rows[sample.cut]
    assert (solved["reward"], solved["spans"], solved["receipt_state"]) == (1.0, 5, "whole")
    assert (retried["attempts"], retried["reward"], retried["attempt_status"]) == (2, None, "succeeded")
    assert cut["receipt_state"] == "1 open, 2 dropped"
    assert rows[sample.queued]["receipt"] is None
    assert (solved["tags"], retried["tags"], cut["tags"]) == (["night", "sums"], ["night"], [])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--status", "succeeded"], {"solved", "retried"}),
        (["--status", "succeeded", "--mode", "train"], {"solved"}),
        (["--mode", "test", "--mode", "val"], {"cut", "retried"}),
        (["--limit", "1"], {"queued"}),
        (["--limit", "1", "--mode", "train"], {"solved"}),
        (["--limit", "-1"], {"solved", "retried", "cut", "queued"}),
        (["--contains", "no such id"], set()),
        (["--tag", "night"], {"solved", "retried"}),
        (["--tag", "night", "--tag", "sums"], {"solved"}),
        (["--tag", "night", "--mode", "val", "--limit", "1"], {"retried"}),
        (["--tag", "sum"], set()),
        (["--reward", "1"], {"solved"}),
        (["--reward", "0.5..", "--mode", "train"], {"solved"}),
        (["--reward", "..0.5"], set()),
        (["--reward", "-1..1", "--contains", "ro-"], {"solved"}),
        (["--reward", "-inf..0"], set()),
        (["--reward", "-.5.."], {"solved"}),
        (["--reward", "none", "--limit", "2"], {"queued", "cut"}),
        (["--name", "WHAT IS"], {"solved"}),
        (["--group", "sums"], set()),
        (["latest"], {"cut"}),
    ],
)
def test_rollouts_are_filtered(sample: Sample, arguments: list[str], expected: set[str]) -> None:
    done = agl("rollouts", "--json", "--store", sample.url, *arguments)
    assert {row["rollout_id"] for row in json.loads(done.out)} == {getattr(sample, name) for name in expected}


def test_rollouts_are_named_sorted_and_counted(sample: Sample) -> None:
    def order(*arguments: str) -> list[str]:
        return [
            row["rollout_id"]
            for row in json.loads(agl("rollouts", "--json", "--store", sample.url, *arguments).out)
        ]

    assert order("--sort", "reward")[0] == sample.solved
    assert order("--sort", "reward", "--reverse")[0] == sample.solved, (
        "those without a reward stand last always"
    )
    assert order("--reverse") == order()[::-1]
    assert order(sample.solved, "latest", sample.solved) == [sample.cut, sample.solved]
    assert order(sample.solved, sample.cut, "--mode", "test") == [sample.cut]
    some = agl("rollouts", "--mode", "train", "--mode", "val", "--limit", "1", "--store", sample.url)
    assert "1 of 2 that match; --limit -1 lists all" in some.err
    assert "plain text" in some.out
    assert "3 of 4 rollouts" in agl("rollouts", "--limit", "3", "--store", sample.url).err
    for bad in ("", "..", "much", "nan"):
        assert agl("rollouts", "--reward", bad, "--store", sample.url).code == 2


def test_a_rollout_of_chat_messages_is_called_by_what_the_user_asked_last(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/chats.db"
    chat = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": "4"},
        {"role": "user", "content": "sure?"},
    ]
    with open_store(url) as store:
        for given in (chat, {"messages": chat}, chat[:1], [1, 2]):
            store.enqueue_rollout(given)
    listed = json.loads(agl("rollouts", "--json", "--store", url).out)
    assert [row["name"] for row in listed[::-1]] == ["sure?", "sure?", json.dumps(chat[:1]), "[1, 2]"]
    assert len(json.loads(agl("rollouts", "--json", "--name", "be brief", "--store", url).out)) == 3


@pytest.mark.parametrize("columns", [60, 80])
def test_a_narrow_list_has_a_second_line_for_what_a_wide_one_has_beside(sample: Sample, columns: int) -> None:
    shown = agl("rollouts", sample.solved, sample.cut, "--store", sample.url, columns=columns).out
    assert max(map(len, shown.splitlines())) <= columns
    words = " ".join(shown.split())
    for word in ("succeeded", "What is 2 + 3?", "train", "test", "whole", "1 open, 2 dropped"):
        assert word in words


def test_an_empty_answer_says_what_to_do_next(sample: Sample) -> None:
    done = agl("rollouts", "--contains", "no such id", "--store", sample.url)
    assert (done.code, done.out) == (0, "")
    assert "none of 4 rollouts matches" in done.err


def test_show_draws_the_tree_with_durations_tokens_and_rewards(sample: Sample) -> None:
    done = agl("show", sample.solved, "--store", sample.url, columns=90)
    assert done.code == 0
    assert lines(done.out) == [
        "What is 2 + 3?",
        f"succeeded · reward 1 · train · attempt 1 · 2 model calls · 9 → 3 tokens · {sample.solved}",
        "tokens at took",
        "· rollout +0 1.5 s",
        "├─ ● chat tiny #1 add(2, 3) 3 → 2 +0 300 ms",
        "├─ · add +400 ms 20 µs",
        "├─ ● chat tiny #2 5 6 → 1 +500 ms 250 ms",
        "└─ ★ reward 1 +1.0 s",
        "● model call ★ reward · other tokens: prompt → answer",
        "receipt 5 started = 5 stored + 0 dropped + 0 open",
    ]


def test_show_flags_what_stands_out(sample: Sample) -> None:
    late = lines(agl("show", sample.retried, "--store", sample.url).out)
    assert any("late redacted" in line for line in late)
    assert any(line.startswith("redacted the redaction rules masked") for line in late)
    assert "✗ no such tool" in agl("show", sample.retried, "--attempt", "1", "--store", sample.url).out
    cut = agl("show", sample.cut, "--store", sample.url).out
    assert any(line.startswith("└─ · endless open +50 ms …") for line in lines(cut))
    assert "4 started = 1 stored + 2 dropped (queue_full 2) + 1 open; truncated: the tail is missing" in cut


def test_show_as_json_has_open_spans_beside_ended_ones(sample: Sample) -> None:
    document = json.loads(agl("show", sample.cut, "--json", "--store", sample.url).out)
    assert [(span["name"], span["open"]) for span in document["spans"]] == [
        ("first", False),
        ("endless", True),
    ]
    assert document["receipt"]["balanced"] is True
    assert document["receipt"]["whole"] is False


def test_an_id_may_be_cut_short_where_it_stays_unique(sample: Sample) -> None:
    ids = [sample.solved, sample.retried, sample.cut, sample.queued]
    size = next(n for n in range(1, 20) if sum(other[:n] == sample.solved[:n] for other in ids) == 1)
    assert agl("show", sample.solved[:size], "--store", sample.url).code == 0
    ambiguous = agl("show", "ro-", "--store", sample.url)
    assert (ambiguous.code, ambiguous.out) == (2, "")
    assert "is the beginning of 4 ids" in ambiguous.err


def test_latest_is_the_newest_rollout_that_has_begun(sample: Sample) -> None:
    assert json.loads(agl("show", "--json", "--store", sample.url).out)["rollout"]["rollout_id"] == sample.cut
    done = agl("show", sample.queued, "--store", sample.url)
    assert done.code == 2
    assert f"rollout {sample.queued} has no attempt yet: it is queuing" in done.err


@pytest.mark.parametrize("command", ["show", "triplets", "explain"])
def test_an_unknown_rollout_is_one_sentence_and_exit_code_2(sample: Sample, command: str) -> None:
    done = agl(command, "ro-nobody", "--store", sample.url)
    assert (done.code, done.out) == (2, "")
    assert (
        done.err == f"agl {command}: rollout 'ro-nobody' not found in this store; agl rollouts lists them\n"
    )


def test_a_password_in_a_url_is_not_printed() -> None:
    done = agl("rollouts", "--store", "nosuch://me:hunter2hunter2@host/db", "--log-level", "DEBUG")
    assert done.code == 2
    assert "Traceback" in done.err
    assert "hunter2" not in done.err


def test_the_debug_log_has_the_traceback(sample: Sample) -> None:
    done = agl("show", "ro-nobody", "--store", sample.url, "--log-level", "debug")
    assert done.code == 2
    assert "Traceback" in done.err


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("sqlite:///no/such/place.db", "there is no store at no/such/place.db"),
        ("no/such/place.db", "there is no store at no/such/place.db"),
        ("sqlite:what.db", "Did you mean sqlite:///what.db ?"),
        ("file:./what.db", "Did you mean sqlite:///./what.db ?"),
        ("redis://localhost", "installed schemes: memory://, sqlite://"),
        ("memory://", "lives in the process that opened it"),
    ],
)
def test_a_bad_store_url_is_one_sentence_and_exit_code_2(url: str, words: str) -> None:
    done = agl("rollouts", "--store", url)
    assert (done.code, done.out) == (2, "")
    assert words in done.err
    assert len(done.err.splitlines()) == 1


@pytest.mark.parametrize("name", ["runs.db", "100% sure? #1.db", "run:1.db"])
def test_a_store_is_named_by_its_path_too_before_the_command_or_after_it(
    sample: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    assert agl("backup", f"runs/{name}", "--store", sample.url).code == 0
    expected = agl("rollouts", "--json", "--store", sample.url).out
    for path in (f"runs/{name}", f"{tmp_path}/runs/{name}", f"./runs/{name}"):
        for words in (
            ["--store", path, "rollouts"],
            [f"--store={path}", "rollouts"],
            ["rollouts", "--store", path],
        ):
            done = agl(*words, "--json")
            assert (done.code, done.out, done.err) == (0, expected, "")


def test_a_file_of_another_program_is_left_alone(tmp_path: Path) -> None:
    other = tmp_path / "notes.txt"
    other.write_text("not a database, and long enough to have a header" * 10, encoding="utf-8")
    before = other.read_bytes()
    done = agl("rollouts", "--store", f"sqlite:///{other}")
    assert done.code == 2
    assert other.read_bytes() == before
    assert len(done.err.splitlines()) == 1


def test_looking_makes_no_file(tmp_path: Path) -> None:
    assert agl("stats", "--store", f"sqlite:///{tmp_path}/none.db").code == 2
    assert list(tmp_path.iterdir()) == []


def test_stats_count_everything(sample: Sample) -> None:
    counts = json.loads(agl("stats", "--json", "--store", sample.url).out)
    assert counts["total_rollouts"] == 4
    assert counts["total_attempts"] == 4
    assert counts["total_spans"] == 8
    assert counts["total_open_spans"] == 1
    assert counts["rollouts_by_status"] == {"queuing": 1, "running": 1, "succeeded": 2}
    assert "4 (1 queuing, 1 running, 2 succeeded)" in "\n".join(
        lines(agl("stats", "--store", sample.url).out)
    )


def test_triplets_previews_the_rows(sample: Sample) -> None:
    done = agl("triplets", sample.solved, "--store", sample.url)
    assert done.code == 0
    assert [line.split()[:4] for line in lines(done.out)[2:]] == [["0", "3", "2", "2"], ["1", "6", "1", "1"]]


def test_triplets_as_json_are_the_rows(sample: Sample) -> None:
    rows = json.loads(agl("triplets", sample.solved, "--json", "--store", sample.url).out)
    assert [row["prompt"]["token_ids"] for row in rows] == [[1, 2, 3], [1, 2, 3, 7, 8, 9]]
    assert [row["response"]["token_ids"] for row in rows] == [[7, 8], [5]]


def test_an_attempt_without_rows_is_a_negative_answer(sample: Sample) -> None:
    done = agl("triplets", sample.retried, "--store", sample.url)
    assert (done.code, done.out) == (1, "")
    assert f"agl explain {sample.retried}" in done.err


def test_help_and_version_load_no_command() -> None:
    assert agl("--version").out.startswith("agl ")
    done = agl("--help")
    assert done.code == 0
    assert "triplets" in done.out


def test_an_unknown_command_is_bad_usage() -> None:
    done = agl("frobnicate")
    assert done.code == 2
    assert "invalid choice: 'frobnicate'" in done.err


def without(package: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a Python that does not have a package."""
    code = (
        f"import sys; sys.modules[{package!r}] = None; from agentlightning.cli import main; sys.exit(main())"
    )
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )


def test_json_lines_need_no_pyarrow_and_parquet_says_how_to_get_it(sample: Sample, tmp_path: Path) -> None:
    assert without("pyarrow", "export", "--store", sample.url).returncode == 0
    done = without("pyarrow", "export", "-o", str(tmp_path / "rows.parquet"), "--store", sample.url)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith("run: pip install 'agentlightning-otel[parquet]'\n")
    assert list(tmp_path.iterdir()) == []
