"""What is mined from suggestions, worked out row by row in plain Python."""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict

from crops_jax.normal_text import has_text, normal_form

TAKEN, LEFT = ("order", "item_click", "click"), ("show", "not_show", "rand")


def usable(text):
    return has_text(text) and len(text) < 2000


def of_day(searches, typed, suggested, followed):
    """The day with one spelling a query, prefixes in normal form, and nothing that cannot be used."""
    typed = [t | {"prefix": normal_form(t["prefix"])} for t in typed if usable(t["prefix"])]
    known = {t["request_id"] for t in typed}
    suggested = [s for s in suggested if s["request_id"] in known and usable(s["query"])]
    searches = [s for s in searches if usable(s["query"]) and s["user_id"] is not None]
    times = Counter(s["query"] for s in searches)
    for s in suggested:
        times[s["query"]] += s["clicked"]
    best = {}
    for text in sorted(times, key=lambda q: (-times[q], q)):
        best.setdefault(normal_form(text), text)
    followed = [f for f in followed if normal_form(f["query"]) in best]
    tables = [[r | {"query": best[normal_form(r["query"])]} for r in rows] for rows in (searches, suggested, followed)]
    return tables[0], typed, *tables[1:]


def prefix_query(searches, typed, suggested, window, keep):
    users, requests = defaultdict(set), defaultdict(set)
    for t in typed:
        if t["user_id"] is None:
            continue
        later = [s for s in searches if s["user_id"] == t["user_id"] and s["ts"] >= t["ts"]]
        first = min(later, key=lambda s: (s["ts"], s["request_id"]), default=None)
        if first is not None and first["ts"] - t["ts"] <= window:
            users[t["prefix"], first["query"]].add(t["user_id"])
            requests[t["prefix"], first["query"]].add(t["request_id"])
    owner = {t["request_id"]: t for t in typed}
    by_query = defaultdict(set)
    for s in searches:
        by_query[s["query"]].add(s["user_id"])
    for s in suggested:
        t = owner[s["request_id"]]
        if s["clicked"] and t["user_id"] is not None:
            users[t["prefix"], s["query"]].add(t["user_id"])
            requests[t["prefix"], s["query"]].add(t["request_id"])
            by_query[s["query"]].add(t["user_id"])
    by_prefix = defaultdict(set)
    for t in typed:
        if t["user_id"] is not None:
            by_prefix[t["prefix"]].add(t["user_id"])
    kept = ranked(users, by_prefix, by_query, keep)
    return kept, {key: (len(n := requests[key]), next(iter(n)) if len(n) == 1 else None) for key in kept}


def query_query(searches, window, most, keep):
    users, by_query = defaultdict(set), defaultdict(set)
    for s in searches:
        by_query[s["query"]].add(s["user_id"])
    for user in {s["user_id"] for s in searches}:
        own = sorted((s["ts"], s["request_id"], s["query"]) for s in searches if s["user_id"] == user)
        for i, (ts, _, query) in enumerate(own):
            for later, _, other in own[i + 1 : i + 1 + most]:
                if 0 < later - ts <= window and other != query:
                    users[query, other].add(user)
                    users[other, query].add(user)
    return ranked(users, by_query, by_query, keep)


def ranked(users, first, second, keep):
    rows = defaultdict(list)
    for (a, b), both in users.items():
        score = len(both) / math.sqrt(len(first[a]) * len(second[b]))
        rows[a].append((a, b, len(both), score))
    return {row[:2]: row[2:] for of in rows.values() for row in sorted(of, key=lambda r: (-r[3], -r[2], r[1]))[:keep]}


def behaviour(typed, suggested, followed):
    prefix = {t["request_id"]: t["prefix"] for t in typed}
    clicks = defaultdict(bool)
    for f in followed:
        clicks[f["request_id"], f["query"]] |= f["ordered"]
    levels = {}
    for s in suggested:
        key = s["request_id"], s["query"]
        if s["clicked"]:
            level = ("order" if clicks[key] else "item_click") if key in clicks else "click"
        else:
            level = "show" if s["shown"] else "not_show"
        order = (*TAKEN, *LEFT)
        levels[key] = min(levels.get(key, level), level, key=order.index)
    return {(r, prefix[r], q): level for (r, q), level in levels.items()}


def rewards(acts, weights, by_prefix=True):
    times = Counter((p, q, level) for (_, p, q), level in acts.items())
    total = Counter()
    for (p, _, level), n in times.items():
        total[p if by_prefix else "", level] += n
    share = {key: n / total[key[0] if by_prefix else "", key[2]] for key, n in times.items()}
    return {key: (n, share[key], weights[key[2]] * math.exp(share[key])) for key, n in times.items()}


def md5(*parts):
    return hashlib.md5("|".join(map(str, parts)).encode()).hexdigest()


def preferences(acts, reward, searches, suggested, weights, config, digits):
    known = {s["query"] for s in searches} | {s["query"] for s in suggested}
    considered, rows = defaultdict(set), {}
    for s in suggested:
        considered[s["request_id"]].add(s["query"])
    for (request, prefix, chosen), level in acts.items():
        if level not in TAKEN:
            continue
        best = reward[prefix, chosen, level][2]
        pools = defaultdict(list)
        for query in considered[request]:
            other = acts[request, prefix, query]
            if other in LEFT:
                pools[other].append((query, reward[prefix, query, other][2]))
        bucket = md5(config.seed, request, chosen)[:digits]
        pools["rand"] = [(q, weights["rand"]) for q in known - considered[request] if md5(q)[:digits] == bucket]
        for other, pool in pools.items():
            drawn = sorted(pool, key=lambda one: (md5(config.seed, request, one[0]), one[0]))
            for query, worse in drawn[: config.rejected_per_kind]:
                rows[request, prefix, chosen, level, query, other] = (best, worse)
    return {key: (a, b, min(1 / (a - b), config.max_weight)) for key, (a, b) in rows.items() if a - b >= config.min_gap}
