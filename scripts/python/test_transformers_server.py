#!/usr/bin/env python3
"""Checks scripts/transformers_server.py against a small model: test_transformers_server.py DIR

DIR is a Hugging Face directory, such as `nativebench models synth gpt2` writes. Run it with the Python of
each pinned environment: $(scripts/python-env.sh NAME)/bin/python.
"""

from __future__ import annotations

import argparse
import http.client
import json
import pathlib
import shutil
import socket
import sys
import tempfile
import threading
import time
import unittest
from typing import Any

import uvicorn
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
import transformers_server  # noqa: E402

CONTEXT = 1000
LONG = 900  # tokens that take far longer than a client needs to leave


class Server(unittest.TestCase):
    model: str
    port: int
    jobs: list[transformers_server.Job] = []  # every one whose work is over
    most = 0  # jobs worked on at once

    @classmethod
    def setUpClass(cls) -> None:
        run, active = transformers_server.Model.run, []

        def seen(self: Any, job: Any, begun: Any, give: Any) -> None:
            active.append(job)
            cls.most = max(cls.most, len(active))
            try:
                run(self, job, begun, give)
            finally:
                active.remove(job)
                cls.jobs.append(job)

        transformers_server.Model.run = seen
        args = argparse.Namespace(
            model=cls.model, served_model_name="small", dtype="float32", device="cpu", threads=1, max_model_len=CONTEXT
        )
        listener = socket.create_server(("127.0.0.1", 0))
        cls.port = listener.getsockname()[1]
        config = uvicorn.Config(transformers_server.application(args), log_level="warning", access_log=False)
        cls.server = uvicorn.Server(config)
        cls.thread = threading.Thread(target=cls.server.run, kwargs={"sockets": [listener]})
        cls.thread.start()
        while not cls.server.started:
            if not cls.thread.is_alive():
                raise RuntimeError("the server ended before it was ready")
            time.sleep(0.05)

    @classmethod
    def tearDownClass(cls) -> None:
        cls.server.should_exit = True
        cls.thread.join()

    @classmethod
    def call(cls, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        c = http.client.HTTPConnection("127.0.0.1", cls.port)
        try:
            c.request(method, path, None if body is None else json.dumps(body), {"Content-Type": "application/json"})
            r = c.getresponse()
            return r.status, json.loads(r.read())
        finally:
            c.close()

    def ask(self, **fields: Any) -> dict[str, Any]:
        status, answer = self.call("POST", "/v1/completions", {"prompt": "Once upon a time", "model": "small", **fields})
        self.assertEqual(status, 200, answer)
        return answer

    def events(self, **fields: Any) -> list[dict[str, Any]]:
        body = {"prompt": "Once upon a time", "stream": True, "return_token_ids": True, **fields}
        c = http.client.HTTPConnection("127.0.0.1", self.port)
        c.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        r = c.getresponse()
        lines = [line[len("data: ") :] for line in r.read().decode().split("\n\n") if line]
        c.close()
        self.assertEqual(r.status, 200, lines)
        self.assertEqual(lines[-1], "[DONE]")
        return [json.loads(line) for line in lines[:-1]]

    def test_stream_is_the_whole_answer(self) -> None:
        for how in ({"temperature": 0}, {"temperature": 0.7, "top_p": 0.9, "seed": 3}, {"temperature": 1, "seed": 4}):
            how = {**how, "max_tokens": 40, "ignore_eos": True, "return_token_ids": True}
            whole = self.ask(**how)
            events = self.events(**how, stream_options={"include_usage": True, "continuous_usage_stats": True})
            last, choices = events[-1], [e["choices"][0] for e in events[:-1]]
            self.assertEqual("".join(c["text"] for c in choices), whole["choices"][0]["text"])
            self.assertEqual([t for c in choices for t in c["token_ids"]], whole["choices"][0]["token_ids"])
            told = [c["prompt_token_ids"] for c in choices]
            self.assertEqual(len(whole["choices"][0]["prompt_token_ids"]), 4)
            self.assertEqual(told, [whole["choices"][0]["prompt_token_ids"]] + [None] * (len(told) - 1))
            self.assertEqual([c["finish_reason"] for c in choices], [None] * (len(choices) - 1) + ["length"])
            counts = [e["usage"]["completion_tokens"] for e in events[:-1]]
            self.assertEqual(counts[:40], list(range(1, 41)))
            self.assertEqual(last["choices"], [])
            self.assertEqual(last["usage"], whole["usage"])
            self.assertEqual(last["usage"], {"prompt_tokens": 4, "completion_tokens": 40, "total_tokens": 44})
            for timings in (last["timings"], whole["timings"]):
                self.assertEqual(set(timings), {"queue_ms", "tokenize_ms", "prefill_ms", "decode_ms"})
                self.assertTrue(all(t >= 0 for t in timings.values()), timings)

    def test_seed(self) -> None:
        def ids(seed: int | None) -> list[int]:
            return self.ask(max_tokens=40, temperature=1, seed=seed, return_token_ids=True, ignore_eos=True)["choices"][0]["token_ids"]

        self.assertEqual(ids(7), ids(7))
        self.assertNotEqual(ids(7), ids(8))
        # Without a seed an answer does not follow from the request before it.
        ids(7)
        free = ids(None)
        ids(7)
        self.assertNotEqual(free, ids(None))

    def test_sampling_is_not_cut_to_fifty(self) -> None:
        # Transformers' own default keeps the 50 likeliest; so hot, nearly every draw from 50,257 is another token.
        firsts = {
            self.ask(max_tokens=1, temperature=100, seed=s, return_token_ids=True)["choices"][0]["token_ids"][0]
            for s in range(120)
        }
        self.assertGreater(len(firsts), 50)

    def test_refusals(self) -> None:
        for status, names, fields in (
            (422, "top_k", {"top_k": 5}),
            (422, "best_of, n", {"n": 2, "best_of": 3}),
            (400, "prompt", {"prompt": ""}),
            (400, "prompt", {"prompt": [1, 2]}),
            (400, "max_tokens", {"max_tokens": 0}),
            (400, "max_tokens", {"max_tokens": 1.5}),
            (400, "max_tokens", {"max_tokens": CONTEXT - 3}),
            (400, "temperature", {"temperature": -0.1}),
            (400, "temperature", {"temperature": float("nan")}),
            (400, "temperature", {"temperature": float("inf")}),
            (400, "top_p", {"top_p": 0}),
            (400, "top_p", {"top_p": 1.1}),
            (400, "seed", {"seed": 1 << 64}),
            (400, "min_tokens", {"min_tokens": 9, "max_tokens": 8}),
            (404, "other", {"model": "other"}),
        ):
            for stream in (False, True):
                with self.subTest(fields=fields, stream=stream):
                    body = {"prompt": "Once upon a time", "max_tokens": 4, "stream": stream, **fields}
                    got, answer = self.call("POST", "/v1/completions", body)
                    self.assertEqual(got, status, answer)
                    self.assertEqual(set(answer["error"]), {"message", "type", "param", "code"})
                    self.assertIn(names, answer["error"]["message"])
                    self.assertEqual(answer["error"]["code"], status)

    def test_fills_the_context(self) -> None:
        answer = self.ask(max_tokens=CONTEXT - 4, temperature=0, ignore_eos=True)
        self.assertEqual(answer["usage"]["total_tokens"], CONTEXT)

    def test_one_at_a_time(self) -> None:
        threads = [threading.Thread(target=self.ask, kwargs={"max_tokens": 100, "ignore_eos": True}) for _ in range(3)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        self.assertEqual(self.most, 1)

    def test_a_client_that_leaves_stops_its_work(self) -> None:
        for stream in (False, True):
            with self.subTest(stream=stream):
                before = len(self.jobs)
                body = {"prompt": "Once upon a time", "max_tokens": LONG, "ignore_eos": True, "stream": stream}
                clients = []
                for _ in range(4):  # one that is worked on and three that wait
                    c = http.client.HTTPConnection("127.0.0.1", self.port)
                    c.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
                    clients.append(c)
                for c in clients:
                    c.close()
                while len(self.jobs) < before + len(clients):
                    time.sleep(0.05)
                self.ask(max_tokens=1)  # and the server goes on
                made = [len(job.ids) for job in self.jobs[before : before + len(clients)]]
                self.assertLess(max(made), LONG)
                self.assertIn(0, made[1:])

    def test_about(self) -> None:
        status, version = self.call("GET", "/version")
        self.assertEqual((status, version["version"], version["torch"]), (200, transformers_server.transformers.__version__, transformers_server.torch.__version__))
        model = self.call("GET", "/v1/models")[1]["data"][0]
        self.assertEqual((model["id"], model["max_model_len"], model["dtype"]), ("small", CONTEXT, "float32"))
        self.assertGreater(model["n_params"], 0)


class Loading(unittest.TestCase):
    def test_lack_of_weights_is_refused(self) -> None:
        """Transformers would fill them with random numbers and go on."""
        with tempfile.TemporaryDirectory() as directory:
            shutil.copytree(Server.model, directory, dirs_exist_ok=True)
            [file] = pathlib.Path(directory).glob("*.safetensors")
            tensors = load_file(file)
            del tensors[next(name for name in tensors if name.endswith("h.0.mlp.c_fc.weight"))]
            save_file(tensors, file, metadata={"format": "pt"})
            with self.assertRaisesRegex(SystemExit, "has no .*h.0.mlp.c_fc.weight and 0 more tensors"):
                transformers_server.load(directory, {})


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(f"usage: {sys.argv[0]} DIR [unittest's arguments]")
    Server.model = sys.argv.pop(1)
    unittest.main()
