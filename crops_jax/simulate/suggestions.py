"""The log contract's tables of suggestions, from what users typed on a simulated day."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from crops_jax.logs.tables import write_table
from crops_jax.simulate.prefixes import Completions
from crops_jax.simulate.sessions import DAY_MS, Stage, Wave

_LOOK_MS = 1_500  # from a search to a click on its first result, and from each place to the next


def write_suggestions(
    stage: Stage, known: Completions, events: Wave, stream: str, start_ms: int, rng: np.random.Generator, folder: Any
) -> dict[str, int]:
    """Writes suggestions, suggested and followed of a day into `folder`, and returns their counts."""
    event, place = _requests(events)
    ids = pa.array([f"{stream}-s{n:08d}" for n in range(len(event))])
    prefix = known.stages[known.start[events.aimed[event]] + place]
    typed_for = events.ts[event] - events.started[event]
    columns = {
        "request_id": ids, "user_id": events.user[event], "prefix": known.prefixes.take(pa.array(prefix)),
        "ts": events.started[event] + typed_for * place // np.maximum(events.letters[event], 1) + start_ms,
    }  # fmt: skip
    write_table("suggestions", columns, folder / "suggestions.parquet")
    taken = np.where(place == events.letters[event] - 1, events.taken[event], -1)
    texts = pa.array(stage.world.queries, pa.string())
    suggested = _suggested(known, ids, prefix, taken, texts)
    write_table("suggested", suggested, folder / "suggested.parquet")
    last = np.cumsum(events.letters) - 1  # an event's last request
    followed = _followed(stage, events, ids, last, texts, known.config.order_chance, start_ms, rng)
    write_table("followed", followed, folder / "followed.parquet")
    return {
        "prefixes typed": len(event), "distinct prefixes": len(np.unique(prefix)),
        "suggestions shown": int(suggested["shown"].sum()), "suggestions taken": int((events.taken >= 0).sum()),
        "of them another query for the same need": int((events.query != events.aimed).sum()),
        "item clicks behind suggestions": len(followed["ts"]), "orders": int(followed["ordered"].sum()),
    }  # fmt: skip


def _requests(events: Wave) -> tuple[np.ndarray, np.ndarray]:
    """(event, letters before the last) of every request for suggestions, event by event."""
    event = np.repeat(np.arange(len(events.ts)), events.letters)
    return event, np.arange(len(event)) - np.repeat(np.cumsum(events.letters) - events.letters, events.letters)


def _suggested(known: Completions, ids: pa.Array, prefix: np.ndarray, taken: np.ndarray, texts: pa.Array) -> dict:
    found = known.suggested[prefix]
    place = np.broadcast_to(np.arange(found.shape[1]), found.shape)
    real = found >= 0
    row = np.broadcast_to(np.arange(len(found))[:, None], found.shape)[real]
    return {
        "request_id": ids.take(pa.array(row)), "query": texts.take(pa.array(found[real])),
        "position": (place[real] + 1).astype(np.int32), "shown": place[real] < known.config.shown,
        "clicked": (place == taken[:, None])[real],
    }  # fmt: skip


def _followed(
    stage: Stage, events: Wave, ids: pa.Array, last: np.ndarray, texts: pa.Array, order_chance: float, start_ms: int,
    rng: np.random.Generator,
) -> dict:  # fmt: skip
    event, column = np.nonzero(events.clicked & (events.item >= 0) & (events.taken >= 0)[:, None])
    item = events.item[event, column]
    grade = stage.taste.grade(events.intent[event], item)
    world = stage.world
    height = np.clip((grade - world.relevant_grade) / max(world.top_grade - world.relevant_grade, 1e-9), 0, 1)
    chance = np.where(stage.taste.relevant(grade), order_chance * (1 + height) / 2, 0)
    ts = np.minimum(events.ts[event] + _LOOK_MS * events.position[event, column], DAY_MS - 1)
    return {
        "request_id": ids.take(pa.array(last[event])), "query": texts.take(pa.array(events.query[event])),
        "item_id": world.items["item_id"].to_numpy()[item], "ordered": rng.random(len(event)) < chance,
        "ts": ts + start_ms,
    }  # fmt: skip
