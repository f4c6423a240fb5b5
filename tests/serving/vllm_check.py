"""The exported towers and the language model's client against a real vLLM on this machine's CPU (`make serve-check`).

    python tests/serving/vllm_check.py EXPORT --python PYTHON   # PYTHON has vLLM

Each tower is served, and asked through the official openai client for its golden texts: they may differ by 1e-5. A text
beyond the model's length is refused without `truncate_prompt_tokens` and answered with it. Then a tiny random Qwen2 is
served with a chat template, and asked by the client of mining with its JSON schema: every question has to be accounted
for, as an answer or as a failure with a reason.
"""

from __future__ import annotations

import argparse
import json
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import openai

from crops_jax.handover.towers import TOWERS, compare_with_golden
from crops_jax.mining.config import EndpointConfig
from crops_jax.mining.endpoint import ask_all, asked
from crops_jax.mining.journal import Journal
from crops_jax.mining.prompt import Exemplar, messages
from crops_jax.mining.replies import Answer

TOLERANCE = 1e-5
QUESTIONS = 24
START_S = 600
MEMORY_SHARE = 0.25  # of this machine's memory: what vLLM would take by itself is seldom free
# Run by the Python that has vLLM, and so transformers and torch: a language model that knows nothing.
TINY_MODEL = """
import sys
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
tokenizer = PreTrainedTokenizerFast(tokenizer_file=sys.argv[1], eos_token="<|endoftext|>", pad_token="<|endoftext|>")
tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\\n{% endfor %}assistant:"
tokenizer.save_pretrained(sys.argv[2])
Qwen2ForCausalLM(Qwen2Config(vocab_size=len(tokenizer), hidden_size=256, intermediate_size=256, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=2048, eos_token_id=tokenizer.eos_token_id,
    tie_word_embeddings=True)).save_pretrained(sys.argv[2])
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("export", type=Path)
    parser.add_argument("--python", required=True, help="a Python that has vLLM")
    args = parser.parse_args()
    for tower in TOWERS:
        check_tower(args.python, args.export / f"{tower}_tower")
    with tempfile.TemporaryDirectory() as folder:
        check_language_model(args.python, args.export / "query_tower" / "tokenizer.json", Path(folder))


def check_tower(python: str, folder: Path) -> None:
    with vllm(python, folder, "--runner", "pooling", "--dtype", "float32") as address:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)

        def encode(texts: list[str], **fields) -> np.ndarray:
            answer = client.embeddings.create(
                model=str(folder), input=texts, encoding_format="float", extra_body=fields
            )  # fmt: skip
            return np.array([row.embedding for row in sorted(answer.data, key=lambda row: row.index)], np.float32)

        cut = {"truncate_prompt_tokens": -1}
        difference = compare_with_golden(folder, lambda texts: encode(texts, **cut), TOLERANCE)
        alone = compare_with_golden(
            folder, lambda texts: np.concatenate([encode([text], **cut) for text in texts]), TOLERANCE
        )
        try:
            encode(["how to wire a transformer " * 400])
            sys.exit(f"{folder}: a text beyond the model's length was answered; docs/handover.md says otherwise")
        except openai.BadRequestError:
            pass
        print(f"{folder}: largest difference {max(difference, alone):.1e}; long texts are cut, or refused", flush=True)


def check_language_model(python: str, tokenizer: Path, folder: Path) -> None:
    subprocess.run([python, "-c", TINY_MODEL, str(tokenizer), str(folder / "model")], check=True)
    with vllm(python, folder / "model", "--dtype", "float32") as address:
        config = EndpointConfig(f"{address}/v1", str(folder / "model"), max_tokens=200, give_up_after=10 * QUESTIONS)
        exemplar = Exemplar(1, "a title", "a caption", "a|b", "c|d")
        prompts = [asked(messages(f"query {i}", exemplar, 1, 1, 100), config) for i in range(QUESTIONS)]
        with Journal(folder / "journal.jsonl") as journal:
            outcomes = ask_all(prompts, config, journal, lambda prompt, answer: True)
    kinds = Counter("answered" if isinstance(found, Answer) else found.reason for found in outcomes.values())
    all_there = sum(kinds.values()) == QUESTIONS and set(outcomes) == {prompt.key for prompt in prompts}
    if not all_there or kinds["endpoint_error"]:
        sys.exit(f"{QUESTIONS} questions, accounted for: {dict(kinds)}")
    for found in outcomes.values():
        if isinstance(found, Answer) and found.finish_reason == "stop":
            json.loads(found.content)  # the schema was obeyed
    print(f"language model: {QUESTIONS} questions, {dict(kinds)}", flush=True)


@contextmanager
def vllm(python: str, model: Path, *flags: str) -> Iterator[str]:
    """The address of a vLLM that serves a folder. Its own command wants a distribution of another name."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--port", str(port)]
    command += ["--gpu-memory-utilization", str(MEMORY_SHARE)]
    with tempfile.TemporaryFile("w+") as log:
        server = subprocess.Popen([*command, "--host", "127.0.0.1", *flags], stdout=log, stderr=log)
        try:
            address, start = f"http://127.0.0.1:{port}", time.monotonic()
            while not _answers(f"{address}/health"):
                if server.poll() is not None or time.monotonic() - start > START_S:
                    log.seek(0)
                    said = log.read().splitlines()
                    causes = [line for line in said if "Error: " in line]  # the first is the root, deep in the log
                    sys.exit("\n".join([f"vLLM does not serve {model}:", *causes, "...", *said[-20:]]))
                time.sleep(1)
            yield address
        finally:
            server.terminate()
            server.wait()


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


if __name__ == "__main__":
    main()
