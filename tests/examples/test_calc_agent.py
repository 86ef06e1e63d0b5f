"""The quickstart keeps its promises: what the server says, what the learner does, and that the loop learns."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from openai import APIStatusError, OpenAI

from agentlightning import open_store
from agentlightning.testing import wait_until
from examples.calc_agent.__main__ import main
from examples.calc_agent.agent import TOOLS, Solution, describe
from examples.calc_agent.curve import draw
from examples.calc_agent.learning import Learner, Row, advantages, self_check
from examples.calc_agent.policy import END, IDS, VOCABULARY, Policy, decode, read_call, render, view
from examples.calc_agent.screen import HEADING, Screen
from examples.calc_agent.server import PolicyServer
from examples.calc_agent.settings import Settings
from examples.calc_agent.tasks import all_tasks, score, some_of_each, split
from examples.calc_agent.train import Point, Result, dealt_anew, train

pytestmark = pytest.mark.long

FIVE_SEEDS = range(5)


@pytest.fixture(scope="module", autouse=True)
def _fonts_are_open(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Draw once before the leak detector looks: matplotlib keeps the font files that it used."""
    drawn = Result(Settings(), curve=[Point(0, 0, None, 0.0), Point(1, 1, 0.0, 0.0)])
    draw(drawn, tmp_path_factory.mktemp("fonts") / "curve.png")


def played(folder: Path, settings: Settings) -> Result:
    """Return what became of a run in the folder's store; its receipts add up, and its rows are what was sampled."""

    async def run() -> Result:
        async with open_store(f"sqlite:///{folder / 'store.db'}") as store:
            return await train(store, settings, lambda _: None)

    result = asyncio.run(run())
    is_sound(result.receipts, result.attempts, result.self_check)
    return result


def is_sound(receipts: Mapping[str, int], attempts: int, self_check: float) -> None:
    assert receipts["started"] == receipts["stored"] + receipts["dropped"] + receipts["open"]
    assert receipts["stored"] == 4 * attempts  # a root, two model calls, a reward
    assert self_check <= 1e-9


def command(folder: Path, *arguments: str) -> int:
    """Run the command with its files in a folder; return its exit status."""
    database, picture = folder / "quickstart.db", folder / "quickstart.png"
    return main([*arguments, "--json", "--out-db", str(database), "--picture", str(picture)])


def printed_by(
    folder: Path, capsys: pytest.CaptureFixture[str], *arguments: str, status: int
) -> tuple[dict[str, Any], str]:
    """Run the command; return what it printed, as JSON and of trouble."""
    ended = command(folder, *arguments)
    printed = capsys.readouterr()
    assert ended == status, printed.err
    assert (folder / "quickstart.png").read_bytes().startswith(b"\x89PNG")
    result: dict[str, Any] = json.loads(printed.out)
    is_sound(result["receipts"], result["attempts"], result["self_check"])
    return result, printed.err


# ------------------------------------------------------------------ the loop


SHORT = Settings(seed=0, iterations=4, samples=10, test_every=4)
"""An eighth of what is played until a policy has learnt all; this learns a third of it."""


@pytest.mark.timeout(600)
def test_one_seed_learns(tmp_path: Path) -> None:
    result = played(tmp_path, SHORT)
    assert result.chance < 0.05
    assert result.final > 0.25


@pytest.mark.timeout(600)
def test_one_seed_learns_nothing_when_rewards_go_to_the_wrong_rollouts(tmp_path: Path) -> None:
    result = played(tmp_path, replace(SHORT, control=True))
    # Always the same tool earns 0.08 with no question read: a policy that wandered there has not learnt.
    assert result.final < result.chance + 0.1


def test_a_command_that_did_not_learn_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, said = printed_by(tmp_path, capsys, "--iterations", "0", status=1)
    assert "not as promised: the test reward ends above 0.9" in said


@pytest.mark.soak
@pytest.mark.parametrize("seed", FIVE_SEEDS)
def test_five_of_five_seeds_learn(tmp_path: Path, capsys: pytest.CaptureFixture[str], seed: int) -> None:
    result, _ = printed_by(tmp_path, capsys, "--seed", str(seed), status=0)
    assert result["chance"] < 0.05
    assert result["final"] > 0.9


@pytest.mark.soak
@pytest.mark.parametrize("seed", FIVE_SEEDS)
def test_five_of_five_controls_learn_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], seed: int
) -> None:
    result, _ = printed_by(tmp_path, capsys, "--seed", str(seed), "--control", status=0)
    assert (
        max(point["test"] for point in result["curve"] if point["test"] is not None) < result["chance"] + 0.1
    )


def test_one_seed_gives_one_curve_however_the_rollouts_interleave_and_whatever_is_in_the_store(
    tmp_path: Path,
) -> None:
    short = Settings(seed=3, iterations=1, tasks=6, samples=4, test_every=1)
    first = played(tmp_path, replace(short, at_once=1))
    assert played(tmp_path, replace(short, at_once=40)).curve == first.curve


# ------------------------------------------------------------------ the command


@pytest.fixture
def at_a_terminal() -> Iterator[None]:
    """Ctrl-C interrupts, as at a terminal: a process that a shell has started in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("at_a_terminal")
def test_ctrl_c_leaves_a_store_that_the_next_run_adds_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    database = tmp_path / "quick start.db"
    files = ["--out-db", str(database), "--picture", str(tmp_path / "curve.png")]

    def succeeded() -> int:
        with (
            suppress(sqlite3.OperationalError),
            closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as opened,
        ):
            ended = opened.execute("SELECT count(*) FROM rollouts WHERE status = 'succeeded'")
            return int(ended.fetchone()[0])
        return 0  # the file, or its table, is still to come

    def interrupt() -> None:
        wait_until(succeeded)
        os.kill(os.getpid(), signal.SIGINT)

    pressing = threading.Thread(target=interrupt)
    pressing.start()
    assert main(["--at-once", "1", *files]) == 130
    pressing.join()
    said = capsys.readouterr()
    assert said.err.startswith("stopped")
    assert "Traceback" not in said.err
    with open_store(database) as store:
        stored = store.query_rollouts()
    assert {each.status for each in stored} <= {"succeeded", "cancelled"}

    assert main(["--iterations", "0", *files]) == 1
    printed = capsys.readouterr().out
    assert f"{database} has {len(stored)} rollouts of earlier runs; this run adds its own" in printed
    assert f"--store 'sqlite:///{database}'" in printed
    assert not set(printed) & {"\r", "\x1b"}  # captured is no terminal


@pytest.mark.soak
def test_ctrl_c_pressed_again_and_again_ends_the_process(tmp_path: Path) -> None:
    files = ["--out-db", str(tmp_path / "store.db"), "--picture", str(tmp_path / "curve.png")]
    command = [sys.executable, "-m", "examples.calc_agent", *files]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.lstrip().startswith("0 "):  # the first test: it is at work
                break

        def pressed() -> bool:
            process.send_signal(signal.SIGINT)
            return process.poll() is not None

        wait_until(pressed)
        assert process.stderr is not None
        assert "stopped after" in process.stderr.read()


def test_what_cannot_be_the_store_of_a_run_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "quickstart.db").write_text("not a database, and long enough to be looked at\n" * 50)
    assert command(tmp_path) == 2
    assert "quickstart.db cannot be the store of this run" in capsys.readouterr().err


@pytest.mark.parametrize(
    "wrong",
    [
        ["--picture", "curve.bmp"],
        ["--picture", "no/such/folder/curve.png"],
        ["--picture", "/proc/curve.png"],
        ["--out-db", "no/such/folder/quickstart.db"],
        ["--at-once", "0"],
        ["--iterations", "-1"],
    ],
)
def test_what_would_fail_at_the_end_fails_at_once(
    wrong: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(wrong)
    assert f"argument {wrong[0]}" in capsys.readouterr().err


@pytest.mark.parametrize("how", ["one name", "symbolic link", "link to what is not there", "hard link"])
def test_the_picture_does_not_replace_the_store(
    how: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    database, picture = tmp_path / "runs.png", tmp_path / "curve.png"
    if how != "link to what is not there":
        database.write_text("a store", encoding="utf-8")
    if how == "hard link":
        picture.hardlink_to(database)
    elif how == "one name":
        picture = tmp_path / ".." / tmp_path.name / database.name
    else:
        picture.symlink_to(database)
    with pytest.raises(SystemExit):
        main(["--out-db", str(database), "--picture", str(picture)])
    assert "--out-db and --picture are one file" in capsys.readouterr().err
    assert not database.exists() or database.read_text(encoding="utf-8") == "a store"


def test_a_picture_that_cannot_be_written_does_not_cost_the_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "quickstart.png").symlink_to("/dev/full")
    assert command(tmp_path, "--iterations", "0") == 2
    printed = capsys.readouterr()
    assert json.loads(printed.out)["attempts"] > 0
    assert "the curve could not be written to" in printed.err


class Output(StringIO):
    """A terminal, or a file, that can encode some characters."""

    def __init__(self, encoding: str = "utf-8", *, is_terminal: bool = False) -> None:
        super().__init__()
        self.is_terminal, self.can = is_terminal, encoding

    encoding = property(lambda self: self.can)

    def isatty(self) -> bool:
        return self.is_terminal


def shown(output: Output) -> str:
    screen = Screen(Settings(iterations=2), output)
    screen.begin()
    for point in (Point(0, 0, None, 0.02), Point(1, 48, 0.5, None), Point(2, 96, 0.75, 1.0)):
        screen(point)
    screen.close()
    return output.getvalue()


def test_a_log_gets_lines_and_a_terminal_a_last_line_that_is_taken_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    heading, first, last = shown(Output()).strip().splitlines()
    assert heading.split() == ["iteration", "rollouts", "train", "test", "left"]
    assert first.split() == ["0", "0", "0.02", "?", "█"]
    assert last.split()[:4] == ["2", "96", "0.75", "1.00"]

    terminal = shown(Output(is_terminal=True))
    assert "\riteration 2 of 2, reward 0.50 in training" in terminal
    # What is written over is followed by what stays, and nothing stays below the last test.
    stays = [line.rsplit("\r", 1)[-1].split() for line in terminal.split("\n")]
    assert stays == [[], heading.split(), first.split(), last.split(), []]


@pytest.mark.parametrize("columns", [20, 40, 60, 80, 200])
def test_no_line_is_wider_than_the_terminal(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    for line in shown(Output(is_terminal=True)).replace("\r", "\n").splitlines():
        assert len(line) <= max(columns, len(HEADING))


def test_bars_are_made_of_what_the_output_can_encode() -> None:
    assert "█" in shown(Output("utf-8"))
    assert shown(Output("ascii")).isascii()


# ------------------------------------------------------------------ the server


@pytest.fixture
def server() -> Iterator[PolicyServer]:
    with PolicyServer(Policy(), run_seed=0) as started:
        yield started


@pytest.fixture
def client(server: PolicyServer) -> Iterator[OpenAI]:
    with OpenAI(base_url=server.url, api_key="none", max_retries=0) as opened:
        yield opened


def asked(client: OpenAI, seed: int, **more: Any) -> Any:
    return client.chat.completions.create(
        model="calc",
        messages=[{"role": "user", "content": "take 3 from 8"}],
        seed=seed,
        logprobs=True,
        extra_body={"return_token_ids": True},
        **more,
    )


@pytest.mark.parametrize("tools", [[], [describe(name) for name in TOOLS]], ids=["words", "call"])
def test_ids_and_log_probabilities_agree_with_usage(client: OpenAI, tools: list[Any]) -> None:
    for seed in range(20):
        completion = asked(client, seed, tools=tools)
        choice = completion.choices[0]
        assert len(completion.prompt_token_ids) == completion.usage.prompt_tokens
        assert len(choice.token_ids) == len(choice.logprobs.content) == completion.usage.completion_tokens
        assert [entry.token for entry in choice.logprobs.content] == [VOCABULARY[i] for i in choice.token_ids]
        assert bytes(choice.logprobs.content[0].bytes).decode() == choice.logprobs.content[0].token
        assert choice.weight_versions == [{"version": "0", "start": 0, "end": len(choice.token_ids)}]


def test_ids_and_log_probabilities_come_only_when_asked_for(client: OpenAI) -> None:
    completion = client.chat.completions.create(
        model="calc", messages=[{"role": "user", "content": "8 plus 1"}]
    )
    assert completion.choices[0].logprobs is None
    assert not {"prompt_token_ids", "token_ids"} & set(completion.to_json())
    assert "token_ids" not in (completion.choices[0].model_extra or {})


def test_the_same_request_gets_the_same_answer_and_another_seed_another_one(client: OpenAI) -> None:
    answers = [asked(client, seed).choices[0].token_ids for seed in (1, 1, 2, 3)]
    assert answers[0] == answers[1]
    assert len({tuple(each) for each in answers}) == 3


def test_a_finish_reason_says_why_the_reply_ends(client: OpenAI) -> None:
    for seed in range(60):
        choice = asked(client, seed, max_tokens=2).choices[0]
        assert choice.finish_reason == ("stop" if choice.token_ids[-1] == IDS[END] else "length")
    assert asked(client, 0, tools=[describe("add")]).choices[0].finish_reason == "tool_calls"


@pytest.mark.parametrize("unknown", [{"stream": True}, {"n": 2}, {"temperature": 0.5}, {"top_p": 0.9}])
def test_what_the_server_cannot_do_it_refuses(client: OpenAI, unknown: Mapping[str, Any]) -> None:
    with pytest.raises(APIStatusError) as refused:
        asked(client, 0, **unknown)
    assert refused.value.status_code == 400


# ------------------------------------------------------------------ the policy


def test_the_next_prompt_begins_with_the_last_prompt_and_its_reply() -> None:
    policy, tools = Policy(), [dict(describe(name)) for name in TOOLS]
    for seed in range(200):
        messages: list[dict[str, Any]] = [{"role": "user", "content": "take 3 from 8"}]
        first = render(messages, tools)
        ids, _ = policy.sample(first, 4, np.random.default_rng(seed))
        name, arguments = read_call(ids)
        messages += [
            {"role": "assistant", "tool_calls": [{"function": {"name": name, "arguments": arguments}}]},
            {"role": "tool", "content": "5"},
        ]
        second = render(messages, tools)
        assert second[: len(first) + len(ids)] == first + ids


def test_words_are_sampled_as_often_as_their_probability_says() -> None:
    policy, prompt = Policy(), render([{"role": "user", "content": "8 plus 1"}], [])
    policy.weights["bias"][1, 0, : len(VOCABULARY)] = np.linspace(0, 3, len(VOCABULARY))
    random = np.random.default_rng(0)
    counts = np.zeros(len(VOCABULARY))
    for _ in range(20_000):
        counts[policy.sample(prompt, 1, random)[0]] += 1
    expected = np.exp(policy.log_probabilities(view(prompt), 0))
    assert np.abs(counts / counts.sum() - expected).max() < 0.01


# ------------------------------------------------------------------ the learner


def sampled_rows(policy: Policy, rewards: list[float]) -> list[Row]:
    """Return two groups of rollouts with two rows each, sampled by ``policy``."""
    random = np.random.default_rng(5)
    rows = []
    for number, reward in enumerate(rewards):
        for question in ("take 3 from 8", "4 boxes of 2 eggs"):
            prompt = render([{"role": "user", "content": question}], [])
            response, logprobs = policy.sample(prompt, 4, random)
            rows.append(Row(str(number), number % 2, prompt, response, logprobs, "0", reward))
    return rows


def wandered() -> Policy:
    """Return a policy with weights that are all different."""
    policy, random = Policy(), np.random.default_rng(1)
    policy.weights = {name: random.normal(0, 0.5, value.shape) for name, value in policy.weights.items()}
    return policy


def test_advantages_are_centred_in_their_group_and_do_not_count_rows() -> None:
    rows = sampled_rows(Policy(), [1.0, 0.0, 0.5, 0.0, 0.0, 0.0])
    found = advantages(rows)
    assert found["0"] == pytest.approx(0.5 / (np.std([1.0, 0.5, 0.0]) + 1e-4))
    assert sum(found[each] for each in "024") == pytest.approx(0)
    assert [found[each] for each in "135"] == [0, 0, 0]
    assert found == advantages([row for index, row in enumerate(rows) if index != 1])


def test_the_gradient_is_the_slope_of_the_objective() -> None:
    policy = wandered()
    rows = sampled_rows(policy, [1.0, 0.0, 0.5, 0.25])
    policy.weights["bias"] += np.random.default_rng(2).normal(0, 0.3, policy.weights["bias"].shape)
    learner = Learner(policy, clip=0.5, curiosity=0.1)
    worth = advantages(rows)

    def objective() -> float:
        terms = []
        for row in rows:
            for position, (token, old) in enumerate(zip(row.response, row.logprobs, strict=True)):
                now = policy.log_probabilities(view(row.prompt), position)
                ratio, advantage = np.exp(now[token] - old), worth[row.rollout_id]
                terms.append(
                    min(ratio * advantage, np.clip(ratio, 0.5, 1.5) * advantage)
                    - 0.1 * (np.exp(now) * now).sum()
                )
        return float(np.mean(terms))

    slopes, random = learner.gradient(rows, worth), np.random.default_rng(3)
    for _ in range(5):
        direction = {name: random.normal(size=value.shape) for name, value in policy.weights.items()}
        expected = sum(float((slopes[name] * direction[name]).sum()) for name in slopes)
        before, ends = policy.weights, []
        for side in (1e-6, -1e-6):
            policy.weights = {name: value + side * direction[name] for name, value in before.items()}
            ends.append(objective())
        policy.weights = before
        assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(expected, abs=1e-7)


def test_the_self_check_sees_a_row_that_was_not_sampled() -> None:
    policy = wandered()
    rows = sampled_rows(policy, [1.0, 0.0])
    assert self_check(policy, rows) == 0
    shifted = replace(rows[0], logprobs=rows[0].logprobs[1:] + rows[0].logprobs[:1])
    swapped = replace(rows[0], prompt=rows[1].prompt)
    assert self_check(policy, [shifted]) > 0.01
    assert self_check(policy, [swapped]) > 0.01


def test_the_control_changes_who_gets_a_reward_and_nothing_else() -> None:
    rows = sampled_rows(Policy(), [1.0, 0.0, 0.5, 0.25])
    dealt = dealt_anew(rows, random.Random(0))
    assert [row.reward for row in dealt] != [row.reward for row in rows]
    assert sorted(row.reward for row in dealt) == sorted(row.reward for row in rows)
    assert [replace(row, reward=0) for row in dealt] == [replace(row, reward=0) for row in rows]


# ------------------------------------------------------------------ the tasks


def test_no_pair_of_numbers_is_both_trained_on_and_tested() -> None:
    training, testing = split(seed=1)
    assert not {(t["a"], t["b"]) for t in training} & {(t["a"], t["b"]) for t in testing}
    assert len(training) + len(testing) == len(all_tasks())
    assert {t["tool"] for t in testing} == set(TOOLS)


def test_an_iteration_has_as_many_tasks_for_each_tool() -> None:
    chosen = some_of_each(all_tasks(), 12, random.Random(0))
    assert [task["tool"] for task in chosen] == ["add"] * 4 + ["subtract"] * 4 + ["multiply"] * 4


@pytest.mark.parametrize(
    ("solution", "reward"),
    [
        (Solution("subtract", {"a": 8, "b": 3}, "5"), 1.0),
        (Solution("subtract", {"a": 8, "b": 3}, "5 eggs"), 0.5),
        (Solution("subtract", {"a": 8, "b": 3}, "4"), 0.75),
        (Solution("add", {"a": 8, "b": 3}, "11"), 0.5),
        (Solution("subtract", {"a": 3, "b": 8}, "-5"), 0.5),
        (Solution("eggs", {}, ""), 0.0),
    ],
)
def test_a_reward_counts_what_is_right(solution: Solution, reward: float) -> None:
    (task,) = [task for task in all_tasks() if task["question"] == "take 3 from 8"]
    assert score(solution, task) == reward


def test_words_survive_the_way_through_tokens() -> None:
    for task in all_tasks():
        prompt = render([{"role": "user", "content": task["question"]}], [])
        assert decode(prompt[1:-2]) == task["question"]
