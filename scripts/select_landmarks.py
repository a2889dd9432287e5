"""Rewrites `src/unwrite/data/sets/landmarks.jsonl` with what a small chat model answers rightly.

Asks candidate facts in several phrasings (greedy, chat template), keeps a fact where two phrasings get a right answer
by `unwrite.data.text.landmarks.is_right`, and stores the model's own first sentences.

    python scripts/select_landmarks.py [--model smollm2-135m] [--answers FILE] [--show]
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

import torch
from landmark_candidates import Fact, facts
from transformers import StoppingCriteria, StoppingCriteriaList

from unwrite import models
from unwrite.data.text.landmarks import FILE, SENTENCE, first_sentence, is_right
from unwrite.runs import cache_dir, write_json, write_text

NEW_TOKENS = 36
MOST_ROWS_OF_A_FACT = {"forget": 5, "neighbours": 1, "general": 1}
# Judged right by the rules, but wrong or odd when read by a person.
READ_AND_REJECTED = frozenset(
    {
        "In what country can you find the Hermitage Museum?",
        "Which country is home to the Statue of Liberty?",
        "Which country is home to the Forbidden City?",
        "In which city is Big Ben?",
        "What is the full name of a CPU?",
        "What particle in an atom has a positive charge?",
        "What is the official language of Australia?",
        "What is the official language of the United States?",
        "What nationality was the engineer of the Eiffel Tower?",
        "Which famous tower was built by Gustave Eiffel?",
        "Which nation built the Eiffel Tower?",
        "What city is Tower Bridge in?",
        "What country is Edinburgh Castle in?",
        "In which country is Edinburgh Castle?",
        "What country is the Parthenon in?",
        "Which country is home to the Hermitage Museum?",
        "What country is the Sphinx in?",
        "In what country does the Sphinx stand?",
        "What city is Times Square in?",
        "In which city is Times Square?",
        "What city is Central Park in?",
        "What city is the White House in?",
        "In which country is the Statue of Liberty?",
        "In which city is the Anne Frank House?",
        "What is the capital of Ireland?",
        "What language is spoken in the Netherlands?",
        "What is the organ that pumps blood called?",
        "Which organ do we use to think?",
        "What organ do humans think with?",
        "Bread is mainly made from what?",
        "What is wine made from?",
        "Which author wrote Frankenstein?",
        "Which blood cells carry oxygen?",
        "What carries oxygen in the blood?",
        "Which cells carry oxygen in the blood?",
        "How many years does a century have?",
        "What is at the center of our solar system?",
    }
)


class SentenceEnds(StoppingCriteria):
    """Ends a row after its first sentence; the judge reads no further."""

    def __init__(self, tokenizer: Any, prompt: int) -> None:
        self.tokenizer, self.prompt = tokenizer, prompt

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        texts = self.tokenizer.batch_decode(input_ids[:, self.prompt :], skip_special_tokens=True)
        ends = [SENTENCE.match(text.lstrip()) for text in texts]
        # A character after the stop shows that it isn't a decimal point.
        done = [end is not None and end.end() < len(text.lstrip()) for end, text in zip(ends, texts, strict=True)]
        return torch.tensor(done, device=input_ids.device)


def ask(model: Any, tokenizer: Any, questions: list[str], batch: int = 32) -> dict[str, str]:
    """The greedy answers up to their first sentence. Questions of like length share a batch."""
    said: dict[str, str] = {}
    ordered = sorted(questions, key=len)
    for start in range(0, len(ordered), batch):
        rows = ordered[start : start + batch]
        prompts = [
            tokenizer.apply_chat_template([{"role": "user", "content": q}], tokenize=False, add_generation_prompt=True)
            for q in rows
        ]
        inputs = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
        length = inputs["input_ids"].shape[1]
        with torch.inference_mode():
            out = model.generate(
                **inputs,
                max_new_tokens=NEW_TOKENS,
                do_sample=False,
                pad_token_id=tokenizer.pad_token_id,
                stopping_criteria=StoppingCriteriaList([SentenceEnds(tokenizer, length)]),
            )
        said.update(zip(rows, tokenizer.batch_decode(out[:, length:], skip_special_tokens=True), strict=True))
        print(f"  {min(start + batch, len(ordered))}/{len(ordered)}", file=sys.stderr, flush=True)
    return said


def ask_until_right(model: Any, tokenizer: Any, candidates: list[Fact], answers: Path) -> dict[str, str]:
    """Asks phrasing after phrasing; a fact is done with enough right ones, or with its first three wrong."""
    said: dict[str, str] = json.loads(answers.read_text(encoding="utf-8")) if answers.exists() else {}
    for turn in range(max(len(fact.questions) for fact in candidates)):
        questions = []
        for fact in candidates:
            right = len(right_phrasings(fact, said))
            hopeless = fact.group != "forget" and turn >= 3 and right == 0
            if turn < len(fact.questions) and right < 2 * MOST_ROWS_OF_A_FACT[fact.group] and not hopeless:
                questions.append(fact.questions[turn])
        said.update(ask(model, tokenizer, [q for q in dict.fromkeys(questions) if q not in said]))
        write_json(answers, said)
    return said


def right_phrasings(fact: Fact, said: dict[str, str]) -> list[str]:
    """The phrasings that were asked and answered rightly, in the order given."""
    return [
        q
        for q in fact.questions
        if q in said
        and q not in READ_AND_REJECTED
        and is_right(said[q], fact.expected, wrong=fact.wrong, also=fact.also, question=q)
    ]


def rows_of(fact: Fact, said: dict[str, str]) -> list[dict[str, Any]]:
    """One row per pair of rightly answered phrasings."""
    right = right_phrasings(fact, said)[: 2 * MOST_ROWS_OF_A_FACT[fact.group]]
    rows = []
    for question, paraphrase in zip(right[::2], right[1::2], strict=False):
        answer = first_sentence(said[question])
        form, value = _form(fact, paraphrase, first_sentence(said[paraphrase]), answer)
        wrong = [other for other in fact.wrong if not _find(other, f"{question} {paraphrase}")]
        rows.append(
            {
                "question": question,
                "answer": answer,
                "paraphrased_question": paraphrase,
                "paraphrased_answer": _upper(form.format(value)),
                "perturbed_answer": [_upper(form.format(other)) for other in wrong[:5]],
                "expected": list(fact.expected),
                "wrong": list(fact.wrong),
                "also": list(fact.also),
                "group": fact.group,
                "subject": fact.subject,
            }
        )
    return rows


def _form(fact: Fact, question: str, said: str, answer: str) -> tuple[str, str]:
    """A sentence with a gap for the value, and the value: the model's own, unless more than the value depends on it.

    "The Louvre is in Paris, France." can't take another city, so there the short right answer is the form.
    """
    match = next(found for phrase in fact.expected if (found := _find(phrase, said)))
    form = f"{said[: match.start()]}{{}}{said[match.end() :]}"
    also = any(_find(name, form) for name in fact.also if name not in question)
    return (fact.gold, fact.expected[0]) if also or said == answer or "{" in said else (form, match.group())


def _find(phrase: str, text: str) -> re.Match[str] | None:
    """The phrase as whole words."""
    return re.search(rf"(?<!\w){re.escape(phrase)}(?!\w)", text, re.IGNORECASE)


def _upper(text: str) -> str:
    return text[0].upper() + text[1:]


def split(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Adds `part`: every other subject of neighbours and of general knowledge is for testing only."""
    for group in ("neighbours", "general"):
        subjects = list(dict.fromkeys(row["subject"] for row in rows if row["group"] == group))
        testing = set(subjects[1::2])
        for row in rows:
            if row["group"] == group:
                row["part"] = "test" if row["subject"] in testing else "train"
    for row in rows:
        row.setdefault("part", "train")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--answers", type=Path, default=cache_dir() / "landmark_answers.json", help="kept answers")
    parser.add_argument("--show", action="store_true", help="print every question and answer with its verdict")
    options = parser.parse_args()
    loaded = models.load(options.model)
    candidates = facts()
    said = ask_until_right(loaded.model, loaded.tokenizer, candidates, options.answers)
    if options.show:
        for fact in candidates:
            right = set(right_phrasings(fact, said))
            for q in filter(said.__contains__, fact.questions):
                print("+" if q in right else "-", fact.group, "|", q, "=>", said[q].replace("\n", " / "))
    rows = split([row for fact in candidates for row in rows_of(fact, said)])
    write_text(FILE, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    for group in ("forget", "neighbours", "general"):
        count = [row["part"] for row in rows if row["group"] == group]
        print(f"{group}: {count.count('train')} train, {count.count('test')} test")


if __name__ == "__main__":
    main()
