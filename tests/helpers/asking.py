"""Prompts for an endpoint, and what became of them."""

from fake_endpoint import completion

from crops_jax.mining.endpoint import ask_all, asked
from crops_jax.mining.journal import Answer, Journal
from crops_jax.mining.prompt import Exemplar, messages

EXEMPLAR = Exemplar(1, "Transformer toys", "A box is opened.", "toys|robots", "transformer toy")


def prompts(n, config):
    return [asked(messages(f"q{i}", EXEMPLAR, 1, 1, 100), config) for i in range(n)]


def ok(number):
    return 200, completion(f"answer {number}")


def ask(wanted, config, path, accepts=lambda prompt, answer: True):
    """What became of the prompts, in their order."""
    with Journal(path) as journal:
        return list(ask_all(wanted, config, journal, accepts).values())


def contents(outcomes):
    return [outcome.content if isinstance(outcome, Answer) else outcome.reason for outcome in outcomes]
