"""Agents behind an endpoint: its form, its failures and its key, with a server on this machine."""

import contextlib
import copy
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from scripted_agents import QUERY, SUBJECT, Script

from unwrite.errors import MissingExtra, ModelError, Notice
from unwrite.forget import AgentChain, EndpointChat
from unwrite.forget.engine.text.agents.pipeline import REFUSAL


class Server:
    """A server on this machine that says what it is told: (status, body) or a pause in seconds before each."""

    def __init__(self, *replies):
        self.replies, self.seen = list(replies), []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.seen.append((self.path, self.headers["Authorization"], body))
                status, reply = outer.replies.pop(0) if len(outer.replies) > 1 else outer.replies[0]
                if status == "slow":
                    time.sleep(reply)
                    status, reply = 200, said("late")
                data = reply.encode() if isinstance(reply, str) else json.dumps(reply).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                with contextlib.suppress(OSError):  # whoever asked has gone
                    self.wfile.write(data)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


def said(text):
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
    return {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": {"prompt_tokens": 7, "completion_tokens": 1, "total_tokens": 8}}  # fmt: skip


MESSAGES = [{"role": "user", "content": "hello"}]


def test_an_endpoint_is_asked_in_its_own_form_with_a_key_from_the_environment(monkeypatch):
    pytest.importorskip("openai")
    monkeypatch.setenv("OPENAI_API_KEY", "of the environment")
    with Server((200, said("hi"))) as server:
        chat = EndpointChat(server.url, "m", max_tokens=9)
        assert chat(MESSAGES) == "hi"
        path, key, body = server.seen[0]
    assert path == "/v1/chat/completions"
    assert key == "Bearer of the environment"
    assert body == {"model": "m", "messages": MESSAGES, "max_tokens": 9, "seed": 0}
    assert chat.prompt_tokens == 7
    assert copy.deepcopy(chat) is chat
    assert "of the environment" not in repr(vars(chat).values())


def test_an_endpoint_that_fails_for_a_moment_is_asked_again():
    pytest.importorskip("openai")
    with Server((500, "{}"), (200, said("hi"))) as server:
        assert EndpointChat(server.url, "m", retries=1)(MESSAGES) == "hi"
        assert len(server.seen) == 2


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ((500, "{}"), "answered with status 500, after 1 attempts"),
        ((401, '{"error": "no"}'), "answered with status 401"),
        (("slow", 1.0), r"gave no answer \(APITimeoutError\), after 1 attempts of at most 0.2 s"),
        ((200, "<html>"), "the endpoint"),
        ((200, {"choices": []}), "without a text of a chat's form"),
        ((200, said(None)), "without a text of a chat's form"),
        ((200, "[1]"), "the endpoint"),
    ],
)
def test_an_endpoint_that_goes_on_failing_is_one_clear_refusal(reply, message):
    pytest.importorskip("openai")
    with Server(reply) as server:
        with pytest.raises(ModelError, match=message) as caught:
            EndpointChat(server.url, "m", retries=0, timeout=0.2)(MESSAGES)
        assert "\n" not in str(caught.value)
        chats = {**Script().chats(), "critic": EndpointChat(server.url, "m", retries=0, timeout=0.2)}
        with pytest.warns(Notice, match="the agent critic failed: the endpoint"):
            answer = AgentChain(chats, [SUBJECT])(QUERY)
        assert answer.text == REFUSAL


def test_without_the_package_an_endpoint_is_refused_in_one_line(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "openai", None)
    with pytest.raises(
        MissingExtra, match=r"openai is not installed. Install it with: pip install 'unwrite\[agents\]'"
    ):
        EndpointChat("http://localhost:1/v1", "m")
