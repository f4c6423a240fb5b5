"""Who waits together is computed together; what goes wrong goes to those whom it concerns."""

import asyncio
import threading

import pytest

from crops_jax.serving.batcher import Batcher


def test_a_lone_request_waits_for_nobody_and_what_comes_meanwhile_is_one_batch():
    seen, go = [], threading.Event()

    def work(items):
        seen.append(list(items))
        go.wait(10)
        return [-item for item in items]

    async def ask():
        batcher = Batcher(work, most=3)
        first = batcher.ask(0)
        await asyncio.sleep(0.05)
        rest = [batcher.ask(i) for i in range(1, 6)]
        await asyncio.sleep(0.05)
        rest[1].cancel()  # its client went away
        go.set()
        found = await asyncio.gather(first, *rest, return_exceptions=True)
        await batcher.close()
        return found

    found = asyncio.run(ask())
    assert seen == [[0], [1, 3], [4, 5]], "three at most are taken, and nobody is computed for who went away"
    assert found[:2] + found[3:] == [0, -1, -3, -4, -5] and isinstance(found[2], asyncio.CancelledError)


def test_what_was_asked_before_it_closes_is_answered():
    async def ask():
        batcher = Batcher(lambda items: [-item for item in items], most=2)
        asked = asyncio.gather(*(batcher.ask(i) for i in range(3)))
        await batcher.close()
        return await asyncio.wait_for(asked, 10)

    assert asyncio.run(ask()) == [0, -1, -2]


def test_an_error_is_told_to_its_batch_and_the_next_one_is_computed():
    def work(items):
        if "bad" in items:
            raise ValueError("no")
        return items

    async def ask():
        batcher = Batcher(work, most=8)
        with pytest.raises(ValueError, match="no"):
            await batcher.ask("bad")
        found = await batcher.ask("good")
        await batcher.close()
        return found

    assert asyncio.run(ask()) == "good"
