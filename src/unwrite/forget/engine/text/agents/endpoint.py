"""An agent behind an OpenAI-compatible endpoint: a provider's, or a server of one's own (vLLM, llama.cpp).

All that an agent reads is sent there: the question, the answer before it was looked at, and the subjects. The key is read from the
environment variable OPENAI_API_KEY and is never stored; a server that needs none gets a word in its place.
"""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import urlsplit

from .....errors import MethodError, MissingExtra, ModelError, setting
from .chat import Message

__all__ = ["ALLOWED", "EndpointChat", "check_endpoint", "need_allowed"]

KEY = "OPENAI_API_KEY"
ALLOWED = "UNWRITE_AGENTS_ENDPOINT"  # of a guard that was loaded: the one endpoint that it may ask
_given: set[str] = set()  # endpoints that this process was given by its user
_NEAR = ("localhost", "127.0.0.1", "::1")


class EndpointChat:
    """A chat model that answers at an address.

    Args:
        url: the address up to its version, as "http://localhost:8000/v1".
        model: its name there.
        max_tokens: of a reply; None leaves it to the endpoint.
        timeout: seconds until a call is given up, above 0.
        retries: further attempts after a failure of the endpoint, each after a longer pause.
        temperature: of sampling; None leaves it to the endpoint, as the official code does.
        seed: sent along; endpoints are free to heed it.

    Attributes:
        prompt_tokens: tokens of all prompts until now, by the endpoint's own count.

    Raises:
        MissingExtra: the package openai is not installed.
        MethodError: an address that is none, or that holds a password.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        max_tokens: int | None = None,
        timeout: float = 60.0,
        retries: int = 2,
        temperature: float | None = None,
        seed: int | None = 0,
    ) -> None:
        check_endpoint(url)
        try:
            from openai import OpenAI
        except ImportError:
            raise MissingExtra("openai", "agents") from None
        self.url, self.model, self.timeout, self.retries = url, model, timeout, retries
        options = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
        self.options: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
        self.prompt_tokens = 0
        key = os.environ.get(KEY) or "none"
        _given.add(url)
        self._client: Any = OpenAI(base_url=url, api_key=key, timeout=timeout, max_retries=retries)

    def __call__(self, messages: list[Message]) -> str:
        """The reply.

        Raises:
            ModelError: no answer in time or after all attempts, a refusal by the endpoint, or an answer of another form.
        """
        try:
            answer = self._client.chat.completions.create(model=self.model, messages=messages, **self.options)
        except Exception as error:  # the package's own errors, and what a nonsense body makes of its parser
            status = getattr(error, "status_code", None)
            what = f"answered with status {status}" if status else f"gave no answer ({type(error).__name__})"
            raise ModelError(
                f"the endpoint {self.url} {what}, after {self.retries + 1} attempts of at most {self.timeout:g} s. Check that it "
                f"runs, that it has the model {self.model!r}, and the key in {KEY}."
            ) from None
        try:
            content = answer.choices[0].message.content
        except (AttributeError, IndexError, TypeError):
            content = None
        if not isinstance(content, str):
            raise ModelError(
                f"the endpoint {self.url} answered without a text of a chat's form. Check that it is the address of an "
                "OpenAI-compatible server, up to its version."
            )
        self.prompt_tokens += getattr(getattr(answer, "usage", None), "prompt_tokens", None) or 0
        return content

    def __deepcopy__(self, memo: Any) -> EndpointChat:
        return self  # connections are no state of a model


def check_endpoint(url: str) -> None:
    """Refuses what is no address, and one with a name and password in it, which would be stored.

    Raises:
        MethodError: either.
    """
    try:
        parts = urlsplit(url)
        known = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        known = False
    if not known:
        raise MethodError(f"{setting('endpoint')} is {url!r}; give an address such as 'http://localhost:8000/v1'.")
    if parts.username or parts.password or parts.query:
        raise MethodError(
            f"{setting('endpoint')} holds more than an address, which would be stored with the guard. Give the key in {KEY}."
        )


def need_allowed(url: str) -> None:
    """Refuses the endpoint of a guard that was loaded, unless it is on this machine or allowed by name: texts and key go there.

    Raises:
        ModelError: it is not allowed.
    """
    if urlsplit(url).hostname not in _NEAR and url not in _given and os.environ.get(ALLOWED) != url:
        raise ModelError(
            f"this guard asks its agents at {url}: all questions, answers and the key in {KEY} would go there. If that is right, set "
            f"{ALLOWED}={url}"
        )
