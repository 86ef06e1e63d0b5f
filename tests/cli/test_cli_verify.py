"""``agl verify``: the verdict, its exit code, and what it says where there is nothing to compare."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from cli_sample import Sample, agl, build

HAS_TORCH = (
    importlib.util.find_spec("torch") is not None and importlib.util.find_spec("transformers") is not None
)


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    return build(tmp_path_factory.mktemp("cli_verify"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A folder with a model that knows the tokens of the sample, and nothing of who sampled them."""
    pytest.importorskip("torch", reason="scripts/trainers installs it")
    transformers = pytest.importorskip("transformers", reason="scripts/trainers installs it")
    return saved(transformers, tmp_path_factory.mktemp("model"), vocabulary=16)


def saved(transformers: Any, folder: Path, vocabulary: int) -> Path:
    config = transformers.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        bos_token_id=None,
        pad_token_id=0,
        eos_token_id=1,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def test_values_of_another_model_are_told_and_exit_with_1(sample: Sample, model: Path) -> None:
    done = agl("verify", sample.solved, "--model", str(model), "--store", sample.url)

    assert done.code == 1, done.err
    assert "ratio" in done.out
    assert sample.solved in done.out
    assert "→" in done.out


def test_a_wide_tolerance_is_exact_and_exits_with_0(sample: Sample, model: Path) -> None:
    done = agl(
        "verify",
        sample.solved,
        sample.solved,
        "--model",
        str(model),
        "--tolerance",
        "50",
        "--store",
        sample.url,
    )
    assert done.code == 0, done.err
    assert done.out.count(sample.solved) == 1
    assert "exact: every recorded log-probability is the one that the model gives" in done.out


def test_json_holds_the_verdict_the_numbers_and_the_place(sample: Sample, model: Path) -> None:
    done = agl("verify", sample.solved, "--model", str(model), "--json", "--store", sample.url)

    found = json.loads(done.out)
    assert done.code == 1
    assert found["total"]["tokens"] == 3
    assert found["total"]["largest"]["span_id"] in {"0000000000000002", "0000000000000004"}
    assert found["verdict"] == found["rows"][0]["verdict"] != "exact"


def test_a_vocabulary_that_is_too_small_is_refused(sample: Sample, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="scripts/trainers installs it")
    transformers = pytest.importorskip("transformers", reason="scripts/trainers installs it")
    small = saved(transformers, tmp_path, vocabulary=8)
    done = agl("verify", sample.solved, "--model", str(small), "--store", sample.url)

    assert done.code == 2
    assert "the model knows 8 tokens" in done.err
    assert "has token 9" in done.err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--model", "no/such/folder"], "is no folder"),
        (["--model", ".", "--temperature", "0"], "above 0"),
        (["--model", ".", "--tolerance", "-1"], "difference in nats"),
        (["--model", ".", "--batch-size", "0"], "at least 1"),
    ],
)
def test_bad_options_are_refused_in_words(sample: Sample, options: list[str], says: str) -> None:
    done = agl("verify", sample.solved, *options, "--store", sample.url)

    assert done.code == 2
    assert says in done.err


def test_a_rollout_without_rows_says_where_to_look(sample: Sample, tmp_path: Path) -> None:
    done = agl("verify", sample.retried, "--model", str(tmp_path), "--store", sample.url)

    assert done.code == 2
    assert "there is no training row" in done.err
    assert "agl rows" in done.err


def test_an_unknown_rollout_is_not_found(sample: Sample, tmp_path: Path) -> None:
    assert agl("verify", "nothing", "--model", str(tmp_path), "--store", sample.url).code == 2


def test_without_torch_it_says_what_to_install_and_with_it_that_the_folder_is_none(
    sample: Sample, tmp_path: Path
) -> None:
    done = agl("verify", sample.solved, "--model", str(tmp_path), "--store", sample.url)

    assert done.code == 2
    assert ("there is no config.json" if HAS_TORCH else "agentlightning-otel[trl]") in done.err
