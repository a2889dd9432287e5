"""unwrite generate --sampler: a diffusion language model's canvas as it fills, live, and one line of statistics."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..errors import MethodError
from ..terminal import visible
from .fields import parse
from .output import console, label, print_json, quiet_libraries
from .samplers import sampler_of

if TYPE_CHECKING:
    from rich.text import Text
    from transformers import PreTrainedTokenizerBase

    from ..diffusion import MaskPredictor, Sampler
    from ..diffusion.base import Step

OPEN = "·"  # a position that is still masked


def denoise(
    prompt: str,
    sampler: str,
    model: str,
    base: str | None,
    gen_length: int,
    temperature: float,
    seed: int,
    raw: bool,
    json: bool,
    fields: Mapping[str, str],
) -> None:
    """Writes one answer. Arguments as `unwrite generate` has them; `fields` may set steps and guidance."""
    known: dict[str, Any] = {"steps": int, "guidance": float}
    for name in fields:
        if name not in known:
            raise MethodError(
                f"--{name.replace('_', '-')} is not known beside --sampler. Write it as part(setting=value)."
            )
    settings = {name: parse(name, value, known[name]) for name, value in fields.items()}
    chosen = sampler_of(sampler, gen_length, seed=seed, **settings)
    if temperature > 0:
        chosen = dataclasses.replace(chosen, propose=dataclasses.replace(chosen.propose, temperature=temperature))
    quiet_libraries()
    from ..diffusion import MaskPredictor
    from ..models import load
    from .generate import encoded

    loaded = load(model, base=base)
    ids = encoded(loaded.tokenizer, prompt, raw)[0].tolist()
    predictor = MaskPredictor.of(loaded.model.eval(), loaded.tokenizer)
    start = time.perf_counter()
    if json:
        out = chosen(predictor, loaded.tokenizer, [ids])
    else:
        out = _shown(chosen, predictor, loaded.tokenizer, ids)
    seconds = time.perf_counter() - start
    answer, forwards = out.answers[0], int(out.nfe[0])
    text = loaded.tokenizer.decode(answer, skip_special_tokens=True)
    result = {
        "text": text,
        "forwards": forwards,
        "positions": gen_length,
        "tokens": len(answer),
        "blocks": out.trace.blocks[0],
        "columns": int(out.trace.work[0]),
        "seconds": round(seconds, 3),
    }
    if json:
        print_json({sampler: result})
        return
    line = f"{forwards} forwards for {gen_length} positions ({gen_length / forwards:.2f} a forward), {len(answer)} before the end"
    console().print(label(f"{sampler}: {line}, {seconds:.2f} s", "dim"))


def _shown(sampler: Sampler, predictor: MaskPredictor, tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> Any:
    from rich.live import Live
    from rich.text import Text

    with Live(Text(OPEN * 8), console=console(), refresh_per_second=20) as live:

        def watch(step: Step) -> None:
            live.update(canvas_text(tokenizer, step.canvas[0, len(ids) : int(step.length[0])].tolist(), predictor))

        out = dataclasses.replace(sampler, watch=watch)(predictor, tokenizer, [ids])
        live.update(Text(visible(tokenizer.decode(out.answers[0], skip_special_tokens=True), lines=True)))
    return out


def canvas_text(tokenizer: PreTrainedTokenizerBase, tokens: list[int], predictor: MaskPredictor) -> Text:
    """The generated part: runs of known tokens as text, what is masked as dots, nothing after a finished end."""
    from rich.text import Text

    masked = [token == predictor.mask_id for token in tokens]
    shown, place = Text(), 0
    while place < len(tokens):
        run = place
        while run < len(tokens) and masked[run] == masked[place]:
            run += 1
        if masked[place]:
            shown.append(OPEN * (run - place), style="dim")
        else:
            shown.append(visible(tokenizer.decode(tokens[place:run], skip_special_tokens=True), lines=True))
        place = run
    return shown
