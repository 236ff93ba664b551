"""Small models with tokenizers, saved as anyone saves one, and the command line to give them to."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

WORDS = [f"word{i}" for i in range(60)]


class Outcome(NamedTuple):
    """What a command left: exit code, stdout, stderr."""

    code: int
    out: str
    err: str


def save_tokenizer(folder: Path, *, special: bool) -> None:
    """A tokenizer of whole words; `special` says whether it has [CLS], [SEP] and a pad token."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = ["[UNK]", *WORDS, "[CLS]", "[SEP]", "[PAD]"]
    tokenizer = Tokenizer(
        models.WordLevel({w: i for i, w in enumerate(vocabulary)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"unk_token": "[UNK]"}
    if special:
        marks = [(mark, vocabulary.index(mark)) for mark in ("[CLS]", "[SEP]")]
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=marks
        )
        names |= {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
    fast.save_pretrained(folder)


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a BERT of 2 layers and 64 positions."""
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("models") / "bert"
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS) + 4,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    save_tokenizer(folder, special=True)
    return folder


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a causal GPT-2 with its head, whose tokenizer has no pad token."""
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("models") / "gpt2"
    torch.manual_seed(1)
    config = GPT2Config(
        vocab_size=len(WORDS) + 4, n_embd=16, n_layer=2, n_head=2, n_positions=32, eos_token_id=0
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    save_tokenizer(folder, special=False)
    return folder


@pytest.fixture(scope="session")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an encoder-decoder T5."""
    from transformers import T5Config, T5Model

    folder = tmp_path_factory.mktemp("models") / "t5"
    torch.manual_seed(2)
    config = T5Config(
        vocab_size=len(WORDS) + 4, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2
    )
    T5Model(config).save_pretrained(folder)
    save_tokenizer(folder, special=True)
    return folder


def passage(documents: int, seed: int = 0, longest: int = 90) -> str:
    """Paragraphs of different lengths."""
    pick = random.Random(seed)
    return "\n\n".join(
        " ".join(pick.choices(WORDS, k=pick.randint(1, longest))) for _ in range(documents)
    )


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A text of 40 documents, some of them longer than a context."""
    path = tmp_path / "text.txt"
    path.write_text(passage(40))
    return path


@pytest.fixture
def cli(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., Outcome]:
    """Runs a command in this process, in an empty folder; all that reaches stdout and stderr."""
    from geomhooks.cli.commands import run

    monkeypatch.chdir(tmp_path)

    def cli(*arguments: object) -> Outcome:
        capfd.readouterr()
        code = run([str(argument) for argument in arguments])
        return Outcome(code, *capfd.readouterr())

    return cli


def start(*arguments: object, folder: Path, program: str = "") -> subprocess.Popen[str]:
    """Start ``python -m geomhooks``, or a program in its stead, as a process of its own."""
    source = Path(__file__).parents[2] / "src"
    paths = [str(source), *filter(None, [os.environ.get("PYTHONPATH")])]
    command = ["-c", program] if program else ["-m", "geomhooks"]
    return subprocess.Popen(
        [sys.executable, *command, *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str], seconds: float = 120) -> Outcome:
    """Wait for a process that :func:`start` started."""
    out, err = process.communicate(timeout=seconds)
    return Outcome(process.returncode, out, err)
