#!/usr/bin/env python3
"""A plain server around Hugging Face Transformers: the baseline that the other servers are held against.

It works on one request at a time, with ``model.generate`` and a streamer, as one would write it by hand. It speaks the
completions protocol of OpenAI with vLLM's additions (ignore_eos, return_token_ids, stream_options.continuous_usage_stats)
and adds "timings": its own account of a request in milliseconds.

Runs with Transformers 4.36 and PyTorch 2.1 as with the newest of both.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import pathlib
import platform
import re
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import torch
import transformers
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

FIELDS = {
    "model", "prompt", "max_tokens", "min_tokens", "temperature", "top_p", "seed", "stream", "stream_options",
    "ignore_eos", "return_token_ids", "user",
}  # fmt: skip
STREAM_OPTIONS = {"include_usage", "continuous_usage_stats"}

# What a job's queue holds beside ids of tokens.
BEGUN, OVER = -1, -2


class Refused(Exception):
    """A request that cannot be answered: the status and the reason go to the client."""

    def __init__(self, status: int, message: str, param: str | None = None):
        super().__init__(message)
        self.status, self.param = status, param

    def response(self) -> JSONResponse:
        return JSONResponse(error(str(self), self.status, self.param), self.status)


def error(message: str, code: int, param: str | None = None) -> dict[str, Any]:
    kind = "invalid_request_error" if code < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


class Job:
    """One request: what was asked, and what has come of it."""

    def __init__(self, body: dict[str, Any]):
        if unknown := sorted(set(body) - FIELDS):
            raise Refused(422, f"unknown fields {', '.join(unknown)}: this server takes {', '.join(sorted(FIELDS))}")

        def number(name: str, default: float, whole: bool = False) -> float:
            value = body.get(name, default)
            good = isinstance(value, int) if whole else isinstance(value, (int, float))
            if isinstance(value, bool) or not good or not math.isfinite(value):
                raise Refused(400, f"{name} must be a{' whole' if whole else ''} number", name)
            return value

        def flag(of: dict[str, Any], name: str) -> bool:
            value = of.get(name, False)
            if not isinstance(value, bool):
                raise Refused(400, f"{name} must be true or false", name)
            return value

        self.prompt = body.get("prompt")
        if not isinstance(self.prompt, str) or not self.prompt:
            raise Refused(400, "prompt must be a text that is not empty", "prompt")
        self.max_tokens = int(number("max_tokens", 16, whole=True))
        self.min_tokens = int(number("min_tokens", 0, whole=True))
        self.temperature = float(number("temperature", 1.0))  # Transformers refuses whole numbers
        self.top_p = float(number("top_p", 1.0))
        self.seed = None if body.get("seed") is None else int(number("seed", 0, whole=True))
        self.stream, self.ignore_eos = flag(body, "stream"), flag(body, "ignore_eos")
        self.return_ids = flag(body, "return_token_ids")
        options = body.get("stream_options") or {}
        if not isinstance(options, dict) or set(options) - STREAM_OPTIONS:
            raise Refused(400, f"stream_options takes {', '.join(sorted(STREAM_OPTIONS))}", "stream_options")
        if options and not self.stream:
            raise Refused(400, "stream_options goes with stream", "stream_options")
        self.usage_at_end = flag(options, "include_usage")
        self.usage_on_each = self.usage_at_end and flag(options, "continuous_usage_stats")
        if self.max_tokens < 1:
            raise Refused(400, f"max_tokens is {self.max_tokens}: ask for at least 1", "max_tokens")
        if not 0 <= self.min_tokens <= self.max_tokens:
            raise Refused(400, f"min_tokens is {self.min_tokens}: give 0 to max_tokens", "min_tokens")
        if self.seed is not None and not 0 <= self.seed < 1 << 64:
            raise Refused(400, f"seed is {self.seed}: give a number of 64 bits, 0 or more", "seed")
        if self.temperature < 0:
            raise Refused(400, f"temperature is {self.temperature}: give 0 (greedy) or more", "temperature")
        if not 0 < self.top_p <= 1:
            raise Refused(400, f"top_p is {self.top_p}: give a number over 0 and at most 1", "top_p")

        self.id = f"cmpl-{uuid.uuid4().hex}"
        self.created = int(time.time())
        self.prompt_tokens = 0
        self.prompt_ids: list[int] = []
        self.ids: list[int] = []
        self.reason: str | None = None
        self.gone = threading.Event()  # nobody waits for the answer any more
        self.arrived = time.perf_counter()
        self.tokenized = self.began = self.first = self.last = 0.0

    def usage(self, made: int) -> dict[str, int]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": made,
            "total_tokens": self.prompt_tokens + made,
        }

    def timings(self) -> dict[str, float]:
        """Milliseconds: waiting for the requests before, tokenizing, until the first token's id, until the last one's."""
        return {
            "queue_ms": 1e3 * (self.began - self.arrived),
            "tokenize_ms": 1e3 * (self.tokenized - self.began),
            "prefill_ms": 1e3 * (self.first - self.tokenized),
            "decode_ms": 1e3 * (self.last - self.first),
        }


class Text:
    """Turns ids into text piece by piece, and holds back what is no whole character yet."""

    def __init__(self, tokenizer: Any, context: list[int]):
        self.tokenizer = tokenizer
        # The prompt's end comes first: some tokenizers drop the blank before the first piece of a text.
        self.ids = list(context)
        self.start, self.shown = 0, len(context)  # ids from start on are decoded; of those before shown the text was given

    def _decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def add(self, token: int) -> str:
        self.ids.append(token)
        before = self._decode(self.ids[self.start : self.shown])
        now = self._decode(self.ids[self.start :])
        if len(now) <= len(before) or now.endswith("\ufffd"):
            return ""
        # The last piece given stays as context: a tokenizer may put a blank between two pieces, or none.
        self.start, self.shown = self.shown, len(self.ids)
        return now[len(before) :]

    def rest(self) -> str:
        before = self._decode(self.ids[self.start : self.shown])
        return self._decode(self.ids[self.start :])[len(before) :]


class Sink(BaseStreamer):
    """Takes each token's id as generate makes it, in the worker's thread, and stamps it there."""

    def __init__(self, job: Job, give: Any):
        self.job, self.give, self.prompt = job, give, True

    def put(self, value: torch.Tensor) -> None:
        if self.prompt:  # the first call brings the prompt's own ids
            self.prompt = False
            return
        for token in value.reshape(-1).tolist():  # waits for the device
            self.job.last = time.perf_counter()
            self.job.first = self.job.first or self.job.last
            self.job.ids.append(token)
            self.give(token)

    def end(self) -> None:
        pass


class Gone(StoppingCriteria):
    """Ends a generation whose client has left."""

    def __init__(self, job: Job):
        self.job = job

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> Any:
        # A bool in Transformers 4.36, one per sequence later.
        left = self.job.gone.is_set()
        return left if OLD else torch.full((input_ids.shape[0],), left, dtype=torch.bool, device=input_ids.device)


OLD = tuple(int(x) for x in transformers.__version__.split(".")[:2]) < (4, 39)


def load(path: str, kind: dict[str, Any]) -> Any:
    """The model with all of its weights: what a checkpoint lacks Transformers fills with random numbers and goes on."""
    model, info = AutoModelForCausalLM.from_pretrained(path, output_loading_info=True, **kind)
    missing = set(info["missing_keys"]) - fuse(model, path, info["missing_keys"])
    if missing:
        raise SystemExit(
            f"transformers_server: {path} has no {sorted(missing)[0]} and {len(missing) - 1} more tensors that "
            f"{type(model).__name__} of Transformers {transformers.__version__} wants: use another version of it"
        )
    return model


def fuse(model: Any, path: str, missing: Any) -> set[str]:
    """Fills query_key_value of Phi as Transformers before 4.37 has it, one matrix of rows by head, then query, key and
    value, from the three matrices of today's checkpoints. Returns what it has filled."""
    parts, done = {}, set()
    for file in sorted(pathlib.Path(path).glob("*.safetensors")) if missing and model.config.model_type == "phi" else []:
        with safe_open(file, framework="pt") as tensors:
            parts.update({name: tensors.get_tensor(name) for name in tensors.keys() if PROJECTION.search(name)})
    for name in missing:
        three = [parts.get(name.replace("query_key_value", part)) for part in ("q_proj", "k_proj", "v_proj")]
        if ".query_key_value." not in name or any(t is None for t in three):
            continue
        heads = [t.unflatten(0, (model.config.num_attention_heads, -1)) for t in three]
        model.get_parameter(name).data.copy_(torch.stack(heads, dim=1).flatten(0, 2))
        done.add(name)
    return done


PROJECTION = re.compile(r"\.self_attn\.[qkv]_proj\.")


class Model:
    def __init__(self, args: argparse.Namespace):
        dtype = "auto" if args.dtype == "auto" else getattr(torch, args.dtype)
        kind = {"torch_dtype" if int(transformers.__version__.split(".")[0]) < 5 else "dtype": dtype}
        device = args.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.tokenizer = AutoTokenizer.from_pretrained(args.model)
        self.model = load(args.model, kind).to(device).eval()
        config = self.model.config
        self.context = min(args.max_model_len or 1 << 30, getattr(config, "max_position_embeddings", 1 << 30))
        # The one thing that is taken from generation_config.json is what ends a text: chat models end with several ids.
        eos = self.model.generation_config.eos_token_id
        eos = config.eos_token_id if eos is None else eos
        self.eos = eos if isinstance(eos, list) else [] if eos is None else [eos]
        # generate() fills what its argument leaves open from the model's own settings: there are none.
        self.model.generation_config = GenerationConfig()
        self.name = args.served_model_name or args.model

    def about(self) -> dict[str, Any]:
        return {
            "id": self.name,
            "object": "model",
            "created": 0,
            "owned_by": "nativebench",
            "max_model_len": self.context,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "n_params": sum(p.numel() for p in self.model.parameters()),
        }

    def settings(self, job: Job) -> GenerationConfig:
        """Everything that decides the next token: nothing is left to the model's own generation_config."""
        how: dict[str, Any] = {"do_sample": False}
        if job.temperature > 0:
            # top_k 0 is off: Transformers' own default keeps 50 tokens.
            how = {"do_sample": True, "temperature": job.temperature, "top_p": job.top_p, "top_k": 0}
        if self.eos and not job.ignore_eos:
            how |= {"eos_token_id": self.eos, "min_new_tokens": job.min_tokens}
        pad = self.eos[0] if self.eos else 0  # never used: there is one text in a batch
        return GenerationConfig(max_new_tokens=job.max_tokens, pad_token_id=pad, use_cache=True, **how)

    @torch.inference_mode()
    def run(self, job: Job, begun: Any, give: Any) -> None:
        """Answers job. begun is called before the model is; give with each token's id."""
        job.began = time.perf_counter()
        if job.gone.is_set():
            return
        prompt = self.tokenizer(job.prompt, return_tensors="pt")
        job.tokenized = time.perf_counter()
        job.prompt_tokens = prompt["input_ids"].shape[1]
        if job.prompt_tokens + job.max_tokens > self.context:
            raise Refused(
                400,
                f"the prompt has {job.prompt_tokens} tokens, with {job.max_tokens} of output over the context of "
                f"{self.context}: shorten it or lower max_tokens",
            )
        job.prompt_ids = prompt["input_ids"][0].tolist()
        begun()
        if job.seed is None:
            torch.seed()  # or the answer would follow from the seed of the request before
        else:
            torch.manual_seed(job.seed)
        self.model.generate(
            **prompt.to(self.model.device),
            generation_config=self.settings(job),
            streamer=Sink(job, give),
            stopping_criteria=StoppingCriteriaList([Gone(job)]),
        )
        job.reason = "stop" if not job.ignore_eos and job.ids and job.ids[-1] in self.eos else "length"


def application(args: argparse.Namespace) -> FastAPI:
    state: dict[str, Model] = {}
    worker = ThreadPoolExecutor(1)  # one request at a time; the others queue here

    @asynccontextmanager
    async def life(_: FastAPI):
        if args.threads:
            torch.set_num_threads(args.threads)
        state["model"] = await asyncio.get_running_loop().run_in_executor(worker, Model, args)
        yield
        worker.shutdown(wait=False, cancel_futures=True)

    app = FastAPI(lifespan=life, openapi_url=None)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [state["model"].about()]}

    @app.get("/version")
    async def version() -> dict[str, str]:
        return {
            "version": transformers.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        }

    def envelope(job: Job, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": job.id,
            "object": "text_completion",
            "created": job.created,
            "model": state["model"].name,
            "choices": choices,
        }

    def sse(event: dict[str, Any]) -> bytes:
        return b"data: " + json.dumps(event, ensure_ascii=False).encode() + b"\n\n"

    def choice(job: Job, text: str, ids: list[int], reason: str | None, first: bool) -> dict[str, Any]:
        c: dict[str, Any] = {"index": 0, "text": text, "logprobs": None, "finish_reason": reason}
        if job.return_ids:
            c["token_ids"] = ids
            # As vLLM does: with a whole answer, and with the first event of a stream.
            c["prompt_token_ids"] = job.prompt_ids if first else None
        return c

    async def watch(request: Request, job: Job) -> None:
        """Waits for the client to leave."""
        while not await request.is_disconnected():
            await asyncio.sleep(0.05)
        job.gone.set()

    def start(job: Job) -> tuple[asyncio.Future, asyncio.Queue]:
        """Queues job. The queue gets BEGUN when the model begins (not if it is refused), each token's id, and OVER."""
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue = asyncio.Queue()

        def put(item: int) -> None:
            loop.call_soon_threadsafe(queue.put_nowait, item)

        def work() -> None:
            try:
                state["model"].run(job, lambda: put(BEGUN), put)
            finally:
                put(OVER)

        return loop.run_in_executor(worker, work), queue

    async def whole(request: Request, job: Job) -> JSONResponse:
        run, _ = start(job)
        watcher = asyncio.create_task(watch(request, job))
        try:
            await run
        finally:
            watcher.cancel()
        pieces = Text(state["model"].tokenizer, job.prompt_ids[-6:])
        text = "".join([pieces.add(t) for t in job.ids]) + pieces.rest()
        answer = envelope(job, [choice(job, text, job.ids, job.reason, True)])
        return JSONResponse({**answer, "usage": job.usage(len(job.ids)), "timings": job.timings()})

    async def stream(request: Request, job: Job) -> Any:
        run, queue = start(job)
        watcher = asyncio.create_task(watch(request, job))
        # What is refused gets its status: the answer's head is sent when the model begins.
        if await queue.get() == OVER:
            watcher.cancel()
            await run
            raise Refused(499, "the client left before its turn")

        async def events() -> Any:
            pieces, made = Text(state["model"].tokenizer, job.prompt_ids[-6:]), 0

            def event(text: str, ids: list[int], reason: str | None) -> bytes:
                answer = envelope(job, [choice(job, text, ids, reason, bool(ids) and made == 1)])
                if job.usage_on_each:
                    answer["usage"] = job.usage(made)
                return sse(answer)

            try:
                while (token := await queue.get()) != OVER:
                    made += 1
                    yield event(pieces.add(token), [token], None)
                await run
                yield event(pieces.rest(), [], job.reason)
                if job.usage_at_end:
                    yield sse({**envelope(job, []), "usage": job.usage(made), "timings": job.timings()})
                yield b"data: [DONE]\n\n"
            except Exception as e:  # the head is sent: all that can be said is said in the stream
                yield sse(error(f"{type(e).__name__}: {e}", 500))
            finally:
                job.gone.set()
                watcher.cancel()

        return StreamingResponse(events(), media_type="text/event-stream")

    @app.post("/v1/completions")
    async def completions(request: Request) -> Any:
        try:
            body = await request.json()
        except ValueError as e:
            return Refused(400, f"the body is no JSON: {e}").response()
        try:
            if not isinstance(body, dict):
                raise Refused(400, "the body must be a JSON object")
            job = Job(body)
            if (wanted := body.get("model")) not in (None, state["model"].name):
                raise Refused(404, f"there is no model {wanted!r} here, only {state['model'].name!r}", "model")
            return await (stream if job.stream else whole)(request, job)
        except Refused as e:
            return e.response()
        except Exception as e:
            return JSONResponse(error(f"{type(e).__name__}: {e}", 500), 500)

    return app


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--model", required=True, help="directory of a Hugging Face model")
    p.add_argument("--served-model-name", help="name in answers; default: the directory")
    p.add_argument("--host", default="127.0.0.1")
    p.add_argument("--port", type=int, default=8000)
    p.add_argument("--dtype", default="auto", choices=["auto", "float32", "float16", "bfloat16"])
    p.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    p.add_argument("--threads", type=int, default=0, help="CPU threads of PyTorch; 0: its own choice")
    p.add_argument("--max-model-len", type=int, default=0, help="tokens of prompt and output; 0: the model's")
    args = p.parse_args()
    uvicorn.run(application(args), host=args.host, port=args.port, log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
