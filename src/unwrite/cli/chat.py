"""unwrite chat: ask the model before and after the same question, and watch both answer."""

from __future__ import annotations

from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING

from ..runs import Run
from ..terminal import visible
from .inputs import need_number
from .output import console, label, quiet_libraries
from .sources import RunModels

if TYPE_CHECKING:
    from ..models import Loaded


def chat(
    run: Path,
    *,
    question: str | None = None,
    max_new_tokens: int = 80,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
) -> None:
    """Chat with both models of a run, side by side.

    Args:
        run: a run folder.
        question: ask only this and end.
        max_new_tokens: length of an answer.
        allow_pickle: load pickled weights, which can run code.
        trust_remote_code: run code that comes with the model.
    """
    need_number("--max-new-tokens", max_new_tokens, at_least=1)
    opened = Run.open(run).need_done()
    quiet_libraries()
    options = {"device": "cpu", "allow_pickle": allow_pickle, "trust_remote_code": trust_remote_code}
    models = RunModels(run=opened, options=options)
    pair = {"before": models.before(), "after": models.after()}
    if question is not None:
        _answer(pair, question, max_new_tokens)
        return
    console().print(label("An empty line or Ctrl-D ends.", "dim"))
    while True:
        try:
            text = console().input(label("you > "))
        except EOFError:
            return
        if not text.strip():
            return
        _answer(pair, text, max_new_tokens)


def _answer(pair: dict[str, Loaded], question: str, max_new_tokens: int) -> None:
    """Streams both answers into two panels."""
    from rich.columns import Columns
    from rich.live import Live
    from rich.panel import Panel
    from rich.text import Text

    texts = dict.fromkeys(pair, "")
    answers = {name: Answer(loaded, question, max_new_tokens) for name, loaded in pair.items()}

    def panels() -> Columns:
        width = max(20, console().width // 2 - 1)
        return Columns(
            [Panel(Text(visible(text, lines=True)), title=name, width=width) for name, text in texts.items()]
        )

    with Live(panels(), console=console(), refresh_per_second=12) as live:

        def read(name: str) -> None:
            for piece in answers[name].streamer:
                texts[name] += piece
                live.update(panels())

        threads = [Thread(target=answer.write, daemon=True) for answer in answers.values()]
        threads += [Thread(target=read, args=(name,), daemon=True) for name in answers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for answer in answers.values():
        if answer.error is not None:
            raise answer.error


class Answer:
    """One model's greedy answer to a question, which ends where the model ends, as the audit generates it.

    `streamer` gives the text piece by piece while `write` runs in a thread of its own; `error` is what stopped it.

    Raises:
        DataError: a question that leaves no room within the model's positions.
    """

    def __init__(self, loaded: Loaded, question: str, max_new_tokens: int) -> None:
        import torch
        from transformers import TextIteratorStreamer

        from ..data import Example
        from ..data.text.encoding import encode_prompt
        from ..scoring import end_ids, new_tokens_within

        tokenizer, self.model = loaded.tokenizer, loaded.model
        prompt = encode_prompt(Example(question=question, answer="-"), tokenizer)
        ids = torch.tensor([prompt], device=next(self.model.parameters()).device)
        self.streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.error: Exception | None = None
        self.settings = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "max_new_tokens": new_tokens_within(self.model, [prompt], max_new_tokens),
            "do_sample": False,
            "pad_token_id": tokenizer.pad_token_id,
            "eos_token_id": end_ids(self.model, tokenizer),
            "streamer": self.streamer,
        }

    def write(self) -> None:
        """Generates; whoever reads the streamer is never left waiting."""
        from ..scoring import plain_defaults

        try:
            with plain_defaults(self.model):
                self.model.generate(**self.settings)
        except Exception as error:
            self.error = error
        finally:
            self.streamer.end()
