"""One run of a model over a text: stream, checkpoint, resume."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import geomhooks as gh
from geomhooks.errors import GeomhooksError, SchemaError
from geomhooks.measuring.batches import Batch, Cursor, batches
from geomhooks.measuring.errors import (
    ModelError,
    OutOfMemoryError,
    ResumeError,
    TextError,
)
from geomhooks.measuring.labels import TOKENS, Labels, labels_in
from geomhooks.measuring.models import Reader
from geomhooks.measuring.outputs import save
from geomhooks.measuring.ranks import Ranks
from geomhooks.measuring.settings import GROUPED, Settings, check_same, statistics_named
from geomhooks.measuring.texts import Source
from geomhooks.storage.descriptions import flag, items_of, number, record, whole

__all__ = ["Progress", "Run", "Stopped", "is_out_of_memory"]

PROMPT = 32  # tokens of the text that figures of heads show


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        cursor: where the next batch begins.
        done: the same as a length, of `total`.
        total: length of the texts.
        contexts: read so far.
        tokens: read so far, padding left out.
        seconds: spent so far, earlier parts of a resumed run included.
        finished: nothing is left to read.
    """

    cursor: Cursor = field(default_factory=Cursor)
    done: float = 0.0
    total: int = 0
    contexts: int = 0
    tokens: int = 0
    seconds: float = 0.0
    finished: bool = False


PROGRESS = record(
    {
        "cursor": items_of(*[whole(0)] * len(Cursor._fields)),
        **dict.fromkeys(("done", "seconds"), number),
        **dict.fromkeys(("total", "contexts", "tokens"), whole(0)),
        "finished": flag,
    }
)


class Stopped(Exception):
    """A run was asked to stop, and has saved what is needed to go on."""

    def __init__(self, progress: Progress) -> None:
        super().__init__(f"stopped after {progress.tokens:,} tokens")
        self.progress = progress


class Run:
    """A model that reads texts under a watch.

    Args:
        reader: model and tokenizer.
        sources: texts, in order.
        settings: what to measure, and how to cut the text.
        checkpoint: file that keeps the state of an unfinished run; ``None`` keeps none.
        every: seconds between two checkpoints.
        ranks: the processes that share out the documents of the texts, this one among them.
        encoder: what factors are made with, where they are measured.
        labels: keep how the contexts begin, for figures.
    """

    def __init__(
        self,
        reader: Reader,
        sources: Sequence[Source],
        settings: Settings,
        checkpoint: Path | None = None,
        every: float = 60.0,
        ranks: Ranks = Ranks(),
        encoder: Any = None,
        labels: bool = True,
    ) -> None:
        self.reader = reader
        self.sources = sources
        self.settings = settings
        self.checkpoint = checkpoint
        self.every = every
        self.ranks = ranks
        self.progress = Progress(total=sum(source.size for source in sources))
        self.labels = Labels(settings.contexts if labels else 0)
        # (1, T) ids of the context that was read which begins with the most different tokens.
        self.prompt: Tensor | None = None
        self._different = 0
        self.watch = gh.watch(
            reader.model,
            sites=settings.sites[0] if len(settings.sites) == 1 else list(settings.sites),
            statistics=statistics_named(
                settings.statistics,
                [source.name for source in sources],
                contexts=settings.contexts,
                positions=reader.length,
                encoder=encoder,
            ),
        )

    @property
    def notes(self) -> dict[str, Any]:
        """What to write beside the numbers: settings, how far the run is, how contexts begin."""
        return {
            "settings": asdict(self.settings),
            "progress": asdict(self.progress),
            "labels": {str(identity): text for identity, text in self.labels.texts.items()},
        }

    def resume(self) -> bool:
        """Go on from the checkpoint; False where there is none.

        Raises:
            ResumeError: it belongs to a run with other settings, or does not say how far it was.
        """
        if self.checkpoint is None or not self.checkpoint.exists():
            return False
        geometry = gh.load(self.checkpoint)
        check_same(self.checkpoint, geometry.notes, self.settings)
        saved: Any = geometry.notes.get("progress")
        try:
            PROGRESS(saved, "notes.progress")
        except SchemaError as error:
            raise ResumeError(f"{self.checkpoint}: {error}") from error
        self.watch.load_state_dict(geometry.state_dict())
        self.progress = Progress(**{**saved, "cursor": Cursor(*saved["cursor"])})
        self.labels.take([labels_in(geometry.notes)])
        return True

    def read(
        self,
        report: Callable[[Progress], None] = lambda progress: None,
        stop: Callable[[], bool] = lambda: False,
    ) -> gh.Geometry:
        """Read what is left of the texts, of several processes each its share.

        Args:
            report: called after each batch.
            stop: asked after each batch; where it says yes, the state is saved and the run ends.

        Raises:
            Stopped: `stop` said yes.
            OutOfMemoryError: a batch, or the state, does not fit.
            TextError: there is no text in the texts.
        """
        saved = time.monotonic()
        start = saved - self.progress.seconds
        device = next(self.reader.model.parameters()).device
        left = batches(
            self.sources,
            self.reader.cut,
            self.settings.batch_size,
            self.reader.pad,
            self.progress.cursor,
            (self.ranks.rank, self.ranks.number),
        )
        first = next(left, None)
        with torch.inference_mode(), self.watch if first else nullcontext():
            for batch in chain([first] if first else [], left):
                self._forward(batch, device)
                self._label(batch)
                self.progress = replace(
                    self.progress,
                    cursor=batch.after,
                    done=batch.done,
                    contexts=self.progress.contexts + len(batch.contexts),
                    tokens=self.progress.tokens + batch.tokens,
                    seconds=time.monotonic() - start,
                )
                report(self.progress)
                if stop():
                    self.save_checkpoint()
                    raise Stopped(self.progress)
                if self.checkpoint and time.monotonic() - saved >= self.every:
                    self.save_checkpoint()
                    saved = time.monotonic()
        self.progress = replace(self.progress, done=self.progress.total, finished=True)
        return self._put_together()

    def _put_together(self) -> gh.Geometry:
        """What all processes have read."""
        several = self.ranks.number > 1
        if several and self.progress.contexts:
            self.save_checkpoint()  # waiting for the others may take long, and may fail
        parts = self.ranks.gather(self.progress)
        contexts, tokens = sum(p.contexts for p in parts), sum(p.tokens for p in parts)
        if not contexts:
            names = ", ".join(source.name for source in self.sources)
            raise TextError(f"there is no text in {names}")
        with self.ranks.reaching():
            geometry = self.watch.geometry(sync=True) if several else self.watch.geometry()
        self.labels.take(self.ranks.gather(self.labels.texts))
        seconds = max(part.seconds for part in parts)
        self.progress = replace(self.progress, contexts=contexts, tokens=tokens, seconds=seconds)
        return geometry

    def save_checkpoint(self) -> None:
        """Write the state, and how far the text has been read, to one file at once."""
        if self.checkpoint is not None:
            save(self.watch.geometry(), self.checkpoint, self.notes)

    def _label(self, batch: Batch) -> None:
        """Note how its contexts begin, with the name of the text where no group tells it."""
        ids, lengths = batch.input_ids, batch.attention_mask.sum(1).tolist()

        def text(row: int) -> str:
            # Marks of the model, which are not shown, take some of the tokens.
            begins = self.reader.text(ids[row, : min(TOKENS, lengths[row])].tolist())
            named = len(self.sources) > 1 and GROUPED not in self.settings.statistics
            return f"{self.sources[int(batch.sources[row])].name}: {begins}" if named else begins

        self.labels.note(batch.contexts.tolist(), text)
        for row, length in enumerate(lengths):
            # What stands in a figure should not be the underline of a heading.
            different = len(set(ids[row, : min(PROMPT, length)].tolist()))
            if self.prompt is None or different > self._different:
                self.prompt, self._different = ids[row : row + 1, :length].clone(), different

    def _forward(self, batch: Batch, device: torch.device) -> None:
        try:
            # A group is known by its text's number, so only where the statistic has their names:
            # runs over other texts then cannot be merged by mistake.
            grouped = GROUPED in self.settings.statistics
            groups = batch.sources.to(device) if grouped else None
            with self.watch.tokens(contexts=batch.contexts.to(device), groups=groups):
                self.reader.model(
                    input_ids=batch.input_ids.to(device),
                    attention_mask=batch.attention_mask.to(device),
                )
        except GeomhooksError:
            raise
        except (RuntimeError, MemoryError, IndexError, ValueError) as error:
            rows, columns = batch.input_ids.shape
            if is_out_of_memory(error):
                smaller = (
                    f"--batch-size {rows // 2}" if rows > 1 else f"--max-length {columns // 2}"
                )
                raise OutOfMemoryError(
                    f"out of memory on {device} at {rows} contexts of {columns} tokens: "
                    f"try {smaller}"
                ) from error
            raise ModelError(
                f"the model failed at {rows} contexts of {columns} tokens: "
                f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            ) from error


def is_out_of_memory(error: Exception) -> bool:
    """CUDA has a class of its own for it, the CPU a RuntimeError."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        "can't allocate memory" in str(error) or "out of memory" in str(error).lower()
    )
