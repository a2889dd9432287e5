"""unwrite chat: ask the model before and after the same question, and watch both answer."""

from __future__ import annotations

from pathlib import Path
from threading import Thread
from typing import Any

from ..runs import Run
from .output import console, quiet_libraries


def chat(run: Path, *, question: str | None = None, max_new_tokens: int = 80) -> None:
    """Chat with both models of a run, side by side.

    Args:
        run: a run folder.
        question: ask only this and end.
        max_new_tokens: length of an answer.
    """
    from ..models import load

    record = Run.open(run).need_done().record
    quiet_libraries()
    pair = {"before": load(record["source"]["name"]), "after": load(run / "model")}
    if question is not None:
        _answer(pair, question, max_new_tokens)
        return
    console().print("[dim]An empty line or Ctrl-D ends.[/]")
    while True:
        try:
            text = console().input("[bold]you > [/]")
        except EOFError:
            return
        if not text.strip():
            return
        _answer(pair, text, max_new_tokens)


def _answer(pair: dict[str, Any], question: str, max_new_tokens: int) -> None:
    """Streams both answers into two panels."""
    from rich.columns import Columns
    from rich.live import Live
    from rich.panel import Panel
    from rich.text import Text
    from transformers import TextIteratorStreamer

    from ..data import Example
    from ..data.encoding import encode_prompt

    texts = dict.fromkeys(pair, "")

    def panels() -> Columns:
        width = max(20, console().width // 2 - 1)
        return Columns([Panel(Text(text), title=name, width=width) for name, text in texts.items()])

    with Live(panels(), console=console(), refresh_per_second=12) as live:
        threads = []
        for name, loaded in pair.items():
            import torch

            ids = torch.tensor([encode_prompt(Example(question=question, answer="-"), loaded.tokenizer)])
            streamer = TextIteratorStreamer(loaded.tokenizer, skip_prompt=True, skip_special_tokens=True)
            settings = {
                "input_ids": ids.to(loaded.model.device),
                "attention_mask": torch.ones_like(ids),
                "max_new_tokens": max_new_tokens,
                "do_sample": False,
                "pad_token_id": loaded.tokenizer.pad_token_id,
                "eos_token_id": loaded.tokenizer.eos_token_id,
                "streamer": streamer,
            }
            Thread(target=loaded.model.generate, kwargs=settings, daemon=True).start()

            def read(name: str = name, streamer: Any = streamer) -> None:
                for piece in streamer:
                    texts[name] += piece
                    live.update(panels())

            threads.append(Thread(target=read, daemon=True))
            threads[-1].start()
        for thread in threads:
            thread.join()
