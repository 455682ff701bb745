// Keys, theme, relative times, copying, and how live updates treat who is at work in the page. No state but the theme is kept.
"use strict";

const $ = (selector, root = document) => root.querySelector(selector);
const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];

// --- What was done, said once, also to screen readers.
let saidTimer = 0;
function say(text) {
  const place = $("#said");
  place.textContent = text;
  clearTimeout(saidTimer);
  saidTimer = setTimeout(() => { place.textContent = ""; }, 2500);
}

// --- Live updates: a connection that breaks because one leaves the page is no error.
let leaving = 0;
const streams = new Set();
addEventListener("beforeunload", () => { leaving = Date.now(); });
addEventListener("pagehide", () => { for (const stream of streams) stream.close(); streams.clear(); });
htmx.createEventSource = (address) => {
  const stream = new EventSource(address);
  streams.add(stream);
  // First of its listeners. A page that was not left after all hears of its errors again, and a broken stream comes back by itself.
  stream.addEventListener("error", (event) => { if (Date.now() - leaving < 5000) event.stopImmediatePropagation(); });
  return stream;
};

// --- Theme: system, light, dark.
const THEMES = { system: "System theme", light: "Light theme", dark: "Dark theme" };
function currentTheme() { return document.documentElement.dataset.theme || "system"; }
function nameTheme() { const name = $("[data-theme-name]"); if (name) name.textContent = THEMES[currentTheme()]; }
function nextTheme() {
  const names = Object.keys(THEMES);
  const next = names[(names.indexOf(currentTheme()) + 1) % names.length];
  if (next === "system") delete document.documentElement.dataset.theme; else document.documentElement.dataset.theme = next;
  try { localStorage.setItem("theme", next); } catch { /* it holds for this page */ }
  nameTheme();
  say(THEMES[next]);
}

// --- Relative times, as engine/measures.py words them.
function ago(seconds) {
  const size = Math.abs(seconds);
  if (size < 1) return "now";
  for (const [unit, length, limit] of [["s", 1, 60], ["min", 60, 3600], ["h", 3600, 86400], ["d", 86400, 1e12]]) {
    if (size < limit) {
      const text = `${Math.floor(size / length)} ${unit}`;
      return seconds > 0 ? `${text} ago` : `in ${text}`;
    }
  }
  return "far away";
}
function refreshTimes() {
  const now = Date.now();
  for (const time of $$("time[data-ago]")) {
    const at = Date.parse(time.dateTime);
    if (Number.isNaN(at)) continue;
    const text = ago((now - at) / 1000);
    if (time.textContent !== text) time.textContent = text;
  }
}

// --- Copying.
async function copy(button) {
  try {
    await navigator.clipboard.writeText(button.dataset.copy);
    say("Copied");
  } catch {
    say("The browser does not let this page copy");
  }
}

// --- Lists: j, k, x; Enter is the link's own.
function rows() { return $$("[data-row] a[data-primary]").filter((link) => link.offsetParent !== null); }
function step(by) {
  const links = rows();
  if (!links.length) return;
  const row = document.activeElement && document.activeElement.closest("[data-row]");
  const at = row ? links.findIndex((link) => row.contains(link)) : -1;
  const next = at < 0 ? (by > 0 ? 0 : links.length - 1) : Math.min(links.length - 1, Math.max(0, at + by));
  links[next].focus();
  links[next].closest("[data-row]").scrollIntoView({ block: "nearest" });
}
function toggleRow() {
  const row = document.activeElement && document.activeElement.closest("[data-row]");
  const box = row && $("input[type=checkbox]", row);
  if (box) { box.checked = !box.checked; box.dispatchEvent(new Event("change", { bubbles: true })); }
}

let isGoing = 0;
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const isTyping = event.target.closest("input:not([type=checkbox]), textarea, select, [contenteditable]");
  if (isTyping) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  if ($("dialog[open]")) return;
  if (isGoing && Date.now() - isGoing < 1500) {
    isGoing = 0;
    const link = $(`[data-go="${CSS.escape(event.key)}"]`);
    if (link) { event.preventDefault(); link.click(); }
    return;
  }
  const act = {
    "/": () => { const field = $("[data-filter]"); if (field) { field.focus(); field.select(); } },
    j: () => step(1),
    k: () => step(-1),
    x: toggleRow,
    g: () => { isGoing = Date.now(); },
    t: nextTheme,
    "?": () => { $("#help").showModal(); },
  }[event.key];
  if (act) { event.preventDefault(); act(); }
});

document.addEventListener("click", (event) => {
  const copies = event.target.closest("[data-copy]");
  if (copies) { copy(copies); return; }
  if (event.target.closest("[data-theme-toggle]")) { nextTheme(); return; }
  const opens = event.target.closest("[data-opens]");
  if (opens) { document.getElementById(opens.dataset.opens).showModal(); return; }
  const closes = event.target.closest("[data-closes]");
  if (closes) { closes.closest("dialog").close(); return; }
  const filters = event.target.closest("[data-clear]");
  if (filters) { const form = filters.closest("form"); for (const field of $$("input, select", form)) field.value = ""; form.requestSubmit(); }
});

// --- Selecting many: a bar says how many, and what is selected does not move meanwhile.
function selected() { return $$("[data-bulk] input[name=id]:checked"); }
function showBulk() {
  const count = selected().length;
  for (const bar of $$("[data-bulk-bar]")) {
    bar.classList.toggle("is-shown", count > 0);
    for (const place of $$("[data-bulk-count]", bar)) place.textContent = `${count} selected`;
    for (const button of $$("button", bar)) button.disabled = count === 0;
  }
}
document.addEventListener("change", (event) => {
  if (event.target.matches("[data-select-all]")) {
    for (const box of $$("[data-bulk] input[name=id]")) box.checked = event.target.checked;
  }
  if (event.target.closest("[data-bulk]")) { showBulk(); showLive(); if (!isAtWork()) catchUp(); }
  if (event.target.matches("[data-submits]")) event.target.form.requestSubmit();
});

// --- Live updates.
const sources = new Set();
let isOpen = false;
let hasMissed = false;
function isAtWork() { return selected().length > 0; }
// What somebody is marking with the mouse stays until it is let go.
function isReading(target) {
  const marked = document.getSelection();
  return marked !== null && !marked.isCollapsed && target.contains(marked.anchorNode);
}
document.addEventListener("selectionchange", () => {
  if (hasMissed && !isAtWork() && document.getSelection().isCollapsed) catchUp();
});
function showLive() {
  const text = isAtWork() ? "paused" : isOpen ? "on" : sources.size ? "lost" : "off";
  const words = { on: "Live", paused: "Paused while you select", lost: "Reconnecting", off: "Not live" };
  for (const mark of $$("[data-live]")) {
    mark.dataset.live = text;
    $("[data-live-text]", mark).textContent = words[text];
  }
}
// A new connection for the page, and its fragments on it; the extension does it whenever an element is processed.
function reconnect(source) {
  sources.delete(source);
  source.close();
  const page = $("[sse-connect]");
  for (const element of [page, ...$$("[sse-swap]", page)]) window.htmx.trigger(element, "htmx:afterProcessNode");
}
function catchUp() {
  if (!hasMissed) return;
  hasMissed = false;
  for (const source of [...sources]) reconnect(source);
}
// Browsers allow a host six connections: a page nobody looks at gives its own back.
document.addEventListener("visibilitychange", () => {
  if (document.hidden) { for (const source of sources) source.close(); }
  else { for (const source of [...sources]) if (source.readyState === EventSource.CLOSED) reconnect(source); }
});
window.addEventListener("pagehide", () => { for (const source of sources) source.close(); });

document.addEventListener("htmx:sseOpen", (event) => { sources.add(event.detail.source); isOpen = true; showLive(); });
document.addEventListener("htmx:sseError", (event) => {
  if (event.detail.source.readyState === EventSource.CLOSED) sources.delete(event.detail.source);
  isOpen = false;
  showLive();
});
const opened = new Set();
const scrolled = new Map();
document.addEventListener("htmx:sseBeforeMessage", (event) => {
  const target = event.target;
  if ((isAtWork() && target.closest("[data-bulk]")) || isReading(target)) { hasMissed = true; event.preventDefault(); return; }
  opened.clear();
  scrolled.clear();
  for (const box of $$(".scroll[id]", target)) scrolled.set(box.id, [box.scrollLeft, box.scrollTop]);
  for (const details of $$("details[id]", target)) opened.add(`${details.id} ${details.open}`);
});
document.addEventListener("htmx:sseMessage", (event) => {
  for (const details of $$("details[id]", event.target)) {
    if (opened.has(`${details.id} true`)) details.open = true;
    else if (opened.has(`${details.id} false`)) details.open = false;
  }
  for (const [id, [left, top]] of scrolled) {
    const box = document.getElementById(id);
    if (box) box.scrollTo({ left, top, behavior: "instant" });
  }
  if ($("[data-reload]")) window.location.replace(window.location.pathname);
  refreshTimes();
});
// What an action answers: a sentence to say; or an error, which is text unless it is a page of ours.
document.addEventListener("said", (event) => {
  say(event.detail.value);
  for (const box of selected()) box.checked = false;
  for (const dialog of $$("dialog[open]")) dialog.close();
  $("#trouble").replaceChildren();
  showBulk();
  showLive();
  catchUp();
});
document.addEventListener("htmx:beforeSwap", (event) => {
  const type = event.detail.xhr.getResponseHeader("content-type") || "";
  for (const dialog of $$("dialog[open]")) dialog.close();
  if (type.startsWith("text/html")) return;
  event.detail.shouldSwap = false;
  const note = document.createElement("div");
  note.className = "note note-bad";
  note.textContent = event.detail.xhr.responseText.slice(0, 1000);
  $("#trouble").replaceChildren(note);
});
document.addEventListener("htmx:sendError", () => say("The dashboard does not answer"));
document.addEventListener("htmx:afterSettle", () => { refreshTimes(); showBulk(); });

document.addEventListener("DOMContentLoaded", () => {
  nameTheme();
  refreshTimes();
  showBulk();
  setInterval(refreshTimes, 1000);
});
