"""Agents that follow a script, for the chain around a model."""

import json

from unwrite.forget.engine.text.agents.pipeline import AGENTS

SUBJECT = "Severus Snape"
QUERY, VANILLA = "Who taught potions?", "  Severus Snape did.\n"
FIVE = ["A teacher did.", "Somebody did.", "It was taught.", "A man did.", "Nobody knows."]


class Script:
    """Agents that say what they are told, one reply after the other and the last again; keeps what they were asked."""

    def __init__(self, **replies):
        own = {
            "vanilla": VANILLA,
            "detect": SUBJECT,
            "erase": json.dumps({"response_list": FIVE}),
            "critic": "[3, 1, 5, 5, 4]",
            "composer": "It was taught by somebody.",
        }
        self.replies = {name: list(one) if isinstance(one, list) else [one] for name, one in {**own, **replies}.items()}
        self.asked = {name: [] for name in AGENTS}

    def chats(self):
        return {name: self._chat(name) for name in AGENTS}

    def _chat(self, name):
        def chat(messages):
            self.asked[name].append(messages)
            reply = self.replies[name].pop(0) if len(self.replies[name]) > 1 else self.replies[name][0]
            if isinstance(reply, Exception):
                raise reply
            return reply

        return chat

    def text(self, name):
        return "\n".join(one["content"] for messages in self.asked[name] for one in messages)
