"""What e-mail addresses, IP addresses and keys look like in a text, and which that look so are none.

Keys come from the detectors of Yelp's detect-secrets, of which nothing but the patterns is used: their checks over the
network are never called. A detector for single tokens knows its service's form; strings of high entropy must mix letters and
digits (ours, in place of the paper's gibberish model, which has to be downloaded).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Literal

from ...errors import MissingExtra

__all__ = ["SecretTag", "addresses", "emails", "is_placeholder", "keys"]

SecretTag = Literal["EMAIL", "IP_ADDRESS", "KEY"]
Span = tuple[int, int]

_EMAIL = re.compile(
    r"(?<![\w.+%-])\w(?:[\w.%+-]{0,62}\w)?"
    r"@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,8}[A-Za-z]{2,24}(?![\w@-]|\.\w)"
)
_V4 = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w-]|\.\w)")
_V6 = re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![\w:]|\.\w)")
_VERSION = re.compile(r"(?:version\w*|release|\bv)\W{0,6}$", re.IGNORECASE)
_PRIVATE_KEY = re.compile(
    r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----(?s:.{1,20000}?)-----END (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----"
)
_NO_MAIL = ("example", "test", "user", "aaa", "bbb", "ccc")
_NO_ADDRESS = re.compile(r"(?:127|10)\.|192\.168\.|169\.254\.|172\.(?:1[6-9]|2\d|3[01])\.|0\.0\.0\.0$|255\.")
_NO_KEY = ("aaaaaaa", "AAAAAAA", "xxxxxxx", "XXXXXXX", "https", "dummy", "placeholder", "changeme")
# detect-secrets' detectors of one token each, and which group of their pattern is the secret (0: all of the match).
_SERVICES: dict[str, int] = {
    "aws.AWSKeyDetector": -1,
    "azure_storage_key.AzureStorageKeyDetector": 0,
    "basic_auth.BasicAuthDetector": 1,
    "discord.DiscordBotTokenDetector": 0,
    "github_token.GitHubTokenDetector": 0,
    "gitlab_token.GitLabTokenDetector": 0,
    "jwt.JwtTokenDetector": 0,
    "mailchimp.MailchimpDetector": 0,
    "npm.NpmDetector": 1,
    "openai.OpenAIDetector": 0,
    "pypi_token.PypiTokenDetector": 0,
    "sendgrid.SendGridDetector": 0,
    "slack.SlackDetector": 0,
    "square_oauth.SquareOAuthDetector": 0,
    "stripe.StripeDetector": 0,
    "telegram_token.TelegramBotTokenDetector": 0,
    "twilio.TwilioKeyDetector": 0,
}
LINE = 10_000  # characters of a line that are searched for keys; patterns are slow on minified code
Found = tuple[int, int, bool]  # a key's start and end, and whether its form is a service's own


def emails(text: str) -> Iterator[Span]:
    """E-mail addresses that stand for someone's: none of example, test or user."""
    for match in _EMAIL.finditer(text):
        if not any(word in match[0].lower() for word in _NO_MAIL):
            yield match.span()


def addresses(text: str) -> Iterator[Span]:
    """Public IPv4 and IPv6 addresses; neither version numbers nor private, local or reserved ones."""
    for match in _V4.finditer(text):
        octets = [int(one) for one in match[0].split(".")]
        private = _NO_ADDRESS.match(match[0])
        version = _VERSION.search(text, max(0, match.start() - 24), match.start()) or max(octets[:2]) < 10
        if max(octets) <= 255 and not private and not version:
            yield match.span()
    for match in _V6.finditer(text):
        if sum(bool(group) for group in match[0].split(":")) >= 3 and _is_public(match[0]):
            yield match.span()


def _is_public(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_global
    except ValueError:
        return False


def keys(text: str) -> Iterator[Found]:
    """Private keys, tokens of known services, and quoted strings of high entropy."""
    services, entropy = _detectors()
    for match in _PRIVATE_KEY.finditer(text):
        yield (*match.span(), True)
    at = 0
    for line in text.splitlines(keepends=True):
        shown = line[:LINE]
        for detector, group in services:
            for pattern in detector.denylist:
                for match in pattern.finditer(shown):
                    start, end = match.span(_group(match, group))
                    if not hasattr(detector, "is_formally_valid") or detector.is_formally_valid(shown[start:end]):
                        yield at + start, at + end, True
        for detector in entropy:
            for match in detector.regex.finditer(shown):
                if _random_looking(detector, match[2], shown):
                    yield at + match.start(2), at + match.end(2), False
        at += len(line)


def _group(match: re.Match[str], group: int) -> int:
    """The group that is the secret; -1 for the pattern's last, where it has any."""
    if group == -1:
        return match.re.groups
    return group if match.re.groups >= group else 0


def _random_looking(detector: Any, value: str, line: str) -> bool:
    from detect_secrets.filters.heuristic import is_likely_id_string, is_potential_uuid, is_sequential_string

    mixed = any(one.isdigit() for one in value) and any(one.isalpha() for one in value)
    return (
        mixed
        and len(value) >= 16
        and detector.calculate_shannon_entropy(value) > detector.entropy_limit
        and not (is_sequential_string(value) or is_potential_uuid(value) or is_likely_id_string(value, line, detector))
    )


@lru_cache(maxsize=1)
def _detectors() -> tuple[list[tuple[Any, int]], list[Any]]:
    """Those of services, each with its group, and the two of entropy."""
    try:
        from detect_secrets.plugins.high_entropy_strings import Base64HighEntropyString, HexHighEntropyString
    except ImportError:
        raise MissingExtra("detect-secrets", "code") from None
    from importlib import import_module

    services = []
    for name, group in _SERVICES.items():
        module, _, cls = name.partition(".")
        services.append((getattr(import_module(f"detect_secrets.plugins.{module}"), cls)(), group))
    return services, [Base64HighEntropyString(limit=4.5), HexHighEntropyString(limit=3.0)]


def is_placeholder(value: str) -> bool:
    """Whether a key is one that stands for another, as in instructions."""
    return value == "ghp" or any(word in value for word in _NO_KEY)
