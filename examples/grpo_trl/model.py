"""A tokenizer and a tiny Llama, made on the spot: nothing is downloaded, and equal seeds give equal files.

The tokenizer is a byte-level BPE that is trained on a few lines of the kind that it will see; its chat template is
ChatML with tools. The Llama has 2 layers of width 64, in float32, with random weights. A random model says noise,
which is what tests of the record want: its text hardly ever encodes to the tokens that it sampled. A model that
shall learn a task from rewards has to say something that is worth a reward now and then, so ``practise`` teaches it
the form of a reply by supervised lessons, of which three in ten are right (``RIGHT``); in the others, which box it
opens, which treasure it names and when it does what are random.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from .agent import OPEN
from .task import BOXES, TREASURES

PAD, START, END = "<|pad|>", "<|im_start|>", "<|im_end|>"
VOCABULARY = 336
"""At most: 3 special tokens, 256 bytes, and merges."""
CONTEXT = 1024
"""Positions that the model knows."""
RIGHT = 0.3
"""Share of the replies in lessons that are right."""
RATE = 3e-3
"""Learning rate of lessons."""
LONGEST = 3
"""Replies in a lesson, at most."""

TEMPLATE = """\
{%- if tools %}
    {{- '<|im_start|>tools\n' }}
    {%- for tool in tools %}
        {{- tool.function.name + '(' + tool.function.parameters.properties | join(', ') + ')\n' }}
    {%- endfor %}
    {{- '<|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\n' + (message.content or '') }}
    {%- for call in message.tool_calls or [] %}
        {%- set arguments = call.function.arguments %}
        {{- '<tool_call>{"name": "' + call.function.name + '", "arguments": ' }}
        {{- (arguments if arguments is string else arguments | tojson) + '}</tool_call>' }}
    {%- endfor %}
    {{- '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
"""


def make(folder: Path, seed: int = 0, lessons: int = 0) -> tuple[Any, Any]:
    """Make a model and its tokenizer, save both to ``folder``, and return them.

    Args:
        folder: Where ``from_pretrained`` finds them afterwards.
        seed: Of the weights and the lessons. The tokenizer is the same for all seeds.
        lessons: Steps of ``practise``; 0 leaves the weights random.

    Returns:
        ``(LlamaForCausalLM, PreTrainedTokenizerFast)``.
    """
    tokenizer = make_tokenizer()
    model = make_model(tokenizer, seed)
    practise(model, tokenizer, lessons, seed)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model, tokenizer


def make_tokenizer() -> Any:
    """Return the tokenizer; every call returns an equal one."""
    tokenizer = Tokenizer(models.BPE())
    # Without the usual split into words, a tool call is a handful of tokens, and so the task is quick to learn.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        min_frequency=2,  # so the number of a box is a token of its own
        special_tokens=[PAD, START, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[START],
        clean_up_tokenization_spaces=False,
        chat_template=TEMPLATE,
        model_max_length=CONTEXT,
    )


def corpus() -> Iterator[str]:
    """Yield the lines that the tokenizer is trained on."""
    yield "open(box)"
    for number in range(1, BOXES + 1):
        yield from (f"box {number}", call(number), "assistant", "user", "tool")
    yield from TREASURES * (BOXES + 1)


def make_model(tokenizer: Any, seed: int) -> Any:
    """Return a random ``LlamaForCausalLM`` for the tokenizer; the random state of torch is left as it was.

    Torch is set to one thread, in the whole process: for a model of this size more of them only wait for each other.
    """
    torch.set_num_threads(1)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
        initializer_range=0.1,  # about 1 / sqrt(width); the default is for models that are 100 times as wide
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).eval()


def call(number: int) -> str:
    """Return the text of a call that opens a box."""
    return f'<tool_call>{{"name": "open", "arguments": {{"box": {number}}}}}</tool_call>'


# -- practice


def practise(model: Any, tokenizer: Any, steps: int, seed: int, batch: int = 32) -> float:
    """Teach the form of replies by ``steps`` supervised steps on replies with random content.

    Returns:
        The loss of the last step, in nats per token of a reply; 0.0 without any step.
    """
    chance = random.Random(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    model.train()
    loss = torch.zeros(())
    for _ in range(steps):
        ids, labels = tensors([lesson(tokenizer, chance) for _ in range(batch)], tokenizer.pad_token_id)
        loss = model(input_ids=ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    return float(loss.detach())


def lesson(tokenizer: Any, chance: random.Random, right: float = RIGHT) -> tuple[list[int], list[int]]:
    """Return the ids of a conversation, and its labels: only replies are learnt.

    Each reply is the right one with the chance of ``right``, and else any call or any treasure.
    """
    heard = f"box {chance.randint(1, BOXES)}"
    ids = render(tokenizer, [{"role": "user", "content": heard}])
    labels = [-100] * len(ids)
    for _ in range(LONGEST):
        said = answer_to(heard) if chance.random() < right else any_reply(chance)
        heard = f"box {chance.randint(1, BOXES)}" if chance.random() < 0.25 else chance.choice(TREASURES)
        goes_on = said not in TREASURES
        rest = f"\n{START}tool\n{heard}{END}\n{START}assistant\n" if goes_on else "\n"
        reply = tokenizer.encode(said + END, add_special_tokens=False)
        context = tokenizer.encode(rest, add_special_tokens=False)
        ids += reply + context
        labels += reply + [-100] * len(context)
        if not goes_on:
            break
    return ids, labels


def answer_to(heard: str) -> str:
    """Return the right reply to what the user or the tool has said."""
    return call(int(heard.removeprefix("box "))) if heard.startswith("box ") else heard


def any_reply(chance: random.Random) -> str:
    """Return a call of any box, or any treasure."""
    return call(chance.randint(1, BOXES)) if chance.random() < 0.5 else chance.choice(TREASURES)


def render(tokenizer: Any, messages: Sequence[Mapping[str, Any]]) -> list[int]:
    """Return the ids of the prompt that asks for the next reply."""
    text = tokenizer.apply_chat_template(messages, tools=[OPEN], add_generation_prompt=True, tokenize=False)
    found: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return found


def tensors(lessons: Sequence[tuple[list[int], list[int]]], pad: int) -> tuple[Any, Any]:
    """Return ids and labels, padded on the right."""
    longest = max(len(ids) for ids, _ in lessons)
    ids = [each + [pad] * (longest - len(each)) for each, _ in lessons]
    labels = [each + [-100] * (longest - len(each)) for _, each in lessons]
    return torch.tensor(ids), torch.tensor(labels)
