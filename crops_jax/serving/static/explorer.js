// Asks /explore and shows its answer. Every text is put in as text, never as markup: it comes from logs.
"use strict";

const WAIT_MS = 250; // of silence before what is typed is searched
const SUGGEST_MS = 100; // and before queries are suggested for it
const $ = (id) => document.getElementById(id);
let asking = null; // the request that is under way
let typing = 0;
let suggesting = 0;
let chosen = null; // the list that a phone shows; the last one at first

function element(name, text, kind) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (kind) made.className = kind;
  return made;
}

function copyOf(id) {
  return $(id).content.firstElementChild.cloneNode(true);
}

async function ask(query, k, history) {
  if (asking) asking.abort();
  const mine = (asking = new AbortController());
  const address = "?" + new URLSearchParams({ q: query, k });
  if (history && address !== location.search) window.history[history](null, "", address);
  $("lists").setAttribute("aria-busy", "true");
  try {
    const answer = await fetch("explore" + address, { signal: mine.signal });
    const found = await answer.json();
    if (!answer.ok) throw new Error(found.error);
    if (mine === asking) show(found);
  } catch (error) {
    if (error.name === "AbortError" || mine !== asking) return;
    tell(error instanceof TypeError ? "The server does not answer. Is it still running?" : error.message);
  }
  $("lists").setAttribute("aria-busy", "false");
}

function tell(line) {
  $("error").firstElementChild.textContent = line;
  $("error").hidden = !line;
}

function show(found) {
  tell("");
  document.title = found.query + " · what is found, and why";
  $("seen").replaceChildren(...seenLines(found.seen), ...movedLine(found.lists));
  const titles = found.lists.map((list) => list.title);
  const lists = found.lists.map((list, i) => listOf(list, i, titles[1 - i], found.depth));
  $("lists").className = lists.length === 2 ? "two" : "";
  $("lists").replaceChildren(...lists);
  $("legend").hidden = false;
  choose(chosen ?? lists.length - 1, titles);
}

function seenLines(seen) {
  if (!seen) return [element("p", "This bundle carries no training evidence.")];
  if (!seen.searches)
    return [element("p", "Unseen: nobody asked this on the train day. What is found was learnt from other queries.", "new")];
  const times = seen.searches === 1 ? "once" : seen.searches + " times";
  const lines = [element("p", `Asked ${times} on the train day.`)];
  if (seen.written) {
    const count = seen.written === 1 ? "a document" : seen.written + " documents";
    const line = element("p", `P3: a language model wrote ${count} for it, `);
    line.append(quoted(seen.title));
    if (seen.exemplar) line.append(", after it was shown ", quoted(seen.exemplar));
    line.append(".");
    lines.push(line);
  }
  return lines;
}

// What the second method brings up, in one line.
function movedLine(lists) {
  if (lists.length < 2) return [];
  const [before, now] = lists;
  const fresh = now.results.filter((row) => row.elsewhere === null || row.elsewhere > before.results.length);
  const beyond = now.results.filter((row) => (row.why ?? []).some((line) => /^P[123]/.test(line)));
  let line = `${fresh.length} of the first ${now.results.length} of ${now.title} are not among those of ${before.title}`;
  if (now.evidence) line += `; ${beyond.length} were learnt from beyond the search log (P1, P2, P3)`;
  return [element("p", line + ".")];
}

function quoted(text) {
  return element("bdi", `“${text}”`);
}

function listOf(list, number, other, depth) {
  const made = copyOf("of-list");
  made.querySelector("bdi").textContent = list.title;
  made.querySelector("small").textContent = `${list.documents} documents, ${list.search === "scann" ? "ScaNN" : "exact search"}`;
  made.querySelector("ol").append(...list.results.map((row) => resultOf(row, number, other, depth)));
  return made;
}

function resultOf(row, number, other, depth) {
  const made = copyOf("of-result");
  made.dataset.rank = row.rank;
  made.dataset.id = row.id;
  made.querySelector("bdi").textContent = row.title || "(no text)";
  made.querySelector(".facts").append(...facts(row, number, other, depth));
  const why = made.querySelector(".why");
  for (const line of row.why ?? []) why.append(element("li", line, line.slice(0, 2)));
  for (const line of row.unused ?? []) why.append(element("li", "not trained on here: " + line, "other"));
  const terms = [["id", row.id], ...row.more.map((text) => ["text", text])];
  for (const [name, text] of terms) {
    const value = element("dd", text);
    value.dir = "auto";
    made.querySelector("dl").append(element("dt", name), value);
  }
  return made;
}

function* facts(row, number, other, depth) {
  if (other !== undefined) yield moved(row, number, other, depth);
  yield element("span", "cosine " + row.cosine.toFixed(3));
  if ("label" in row) {
    yield element("span", row.label === null ? "no label" : "label " + row.label);
    if (row.grade !== null) yield element("span", "grade " + row.grade);
    yield row.shown
      ? element("span", `shown ${row.shown} ×, clicked ${row.clicked} ×`)
      : element("span", "never shown for this query", "never");
  }
}

function moved(row, number, other, depth) {
  const away = row.elsewhere === null;
  if (number === 0) return element("span", `${away ? "not in " + depth + " of" : row.elsewhere + " in"} ${other}`, away ? "down" : "");
  if (away) return element("span", `▲ new, not in ${depth} of ${other}`, "up");
  const up = row.elsewhere - row.rank;
  if (up === 0) return element("span", "= same place");
  return element("span", `${up > 0 ? "▲" : "▼"} ${row.elsewhere} in ${other}`, up > 0 ? "up" : "down");
}

function choose(number, titles) {
  const lists = [...$("lists").children];
  lists.forEach((list, i) => list.classList.toggle("chosen", i === number));
  $("switch").hidden = lists.length < 2;
  if (titles) {
    $("switch").replaceChildren(...titles.map((title, i) => {
      const button = element("button", title);
      button.type = "button";
      button.addEventListener("click", () => choose((chosen = i)));
      return button;
    }));
  }
  [...$("switch").children].forEach((button, i) => button.setAttribute("aria-pressed", String(i === number)));
}

function submit(history) {
  clearTimeout(typing);
  const query = $("q").value;
  if (query.trim()) ask(query, $("k").value, history);
}

function fromAddress() {
  const said = new URLSearchParams(location.search);
  const k = said.get("k");
  if ([...$("k").options].some((option) => option.value === k)) $("k").value = k;
  $("q").value = said.get("q") ?? "";
  submit();
}

async function offerExamples() {
  try {
    const offered = await (await fetch("examples")).json();
    if (offered.suggests) $("q").setAttribute("list", "suggested");
    $("examples").append(...offered.examples.map(({ query, why }) => {
      const button = element("button");
      button.type = "button";
      button.append(element("bdi", query), " ", element("small", why));
      button.addEventListener("click", () => {
        $("q").value = query;
        submit("pushState");
      });
      const entry = element("li");
      entry.append(button);
      return entry;
    }));
  } catch {
    tell("The server does not answer. Is it still running?");
  }
}

// Suggestions are a convenience: where none come, nothing is told.
async function offerSuggestions() {
  const typed = $("q").value;
  try {
    const answer = await fetch("suggest?" + new URLSearchParams({ q: typed, k: 8 }));
    if (!answer.ok || $("q").value !== typed) return;
    const { suggestions } = await answer.json();
    $("suggested").replaceChildren(...suggestions.map((query) => {
      const option = element("option");
      option.value = query;
      return option;
    }));
  } catch {}
}

function onKey(event) {
  const result = event.target.closest?.("ol > li");
  if (event.key === "/" && !event.target.matches("input, select")) {
    event.preventDefault();
    $("q").select();
  } else if (event.target === $("q") && event.key === "ArrowDown" && !$("suggested").children.length) {
    event.preventDefault();
    [...document.querySelectorAll("ol > li")].find((li) => li.offsetParent)?.focus();
  } else if (result && event.target === result) {
    const list = result.closest(".list");
    const [before, after] = [list.previousElementSibling, list.nextElementSibling];
    const near = {
      ArrowDown: result.nextElementSibling, ArrowUp: result.previousElementSibling ?? $("q"),
      ArrowLeft: before?.querySelectorAll("ol > li")[row(result)], ArrowRight: after?.querySelectorAll("ol > li")[row(result)],
    }[event.key];
    if (event.key === "Enter") result.querySelector("details").toggleAttribute("open");
    else if (near) {
      event.preventDefault();
      near.focus();
    }
  }
}

function row(result) {
  return [...result.parentElement.children].indexOf(result);
}

function markTwins(event) {
  const id = event.type === "pointerout" || event.type === "focusout" ? null : event.target.closest?.("ol > li")?.dataset.id;
  for (const li of document.querySelectorAll("ol > li")) li.classList.toggle("twin", id !== undefined && li.dataset.id === id);
}

$("search").addEventListener("submit", (event) => {
  event.preventDefault();
  submit("pushState");
});
$("q").addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(() => submit("replaceState"), WAIT_MS);
  clearTimeout(suggesting);
  if ($("q").hasAttribute("list")) suggesting = setTimeout(offerSuggestions, SUGGEST_MS);
});
$("k").addEventListener("change", () => submit("replaceState"));
$("again").addEventListener("click", () => ($("examples").children.length ? submit() : (offerExamples(), submit(), tell(""))));
for (const kind of ["pointerover", "pointerout", "focusin", "focusout"]) $("lists").addEventListener(kind, markTwins);
document.addEventListener("keydown", onKey);
window.addEventListener("popstate", fromAddress);
offerExamples();
fromAddress();
