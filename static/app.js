"use strict";
/* Keys, tooltips, charts. What a key does is written on the link that it follows (data-key), so the keyboard,
   the mouse and a browser without scripts all lead to the same addresses. */

const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];

/* ---- Keys ---- */

const waiting = [];
let busy = false;

function press(key) {
  const row = key === "j" || key === "k" ? moveRow(key === "j" ? 1 : -1) : false;
  if (row) return true;
  const field = document.querySelector(`[data-focus-key="${CSS.escape(key)}"]`);
  if (field) {
    field.focus();
    field.select?.();
    return true;
  }
  const target = $$("[data-key]").find((element) => element.dataset.key.split(" ").includes(key));
  if (!target) return false;
  if (target.dataset.open) openDialog(target.dataset.open);
  else target.click();
  return true;
}

function moveRow(step) {
  const rows = $$("[data-row]");
  if (!rows.length) return false;
  const at = rows.indexOf(document.activeElement);
  const next = rows[at < 0 ? (step > 0 ? 0 : rows.length - 1) : Math.min(rows.length - 1, Math.max(0, at + step))];
  next.focus();
  next.scrollIntoView({ block: "nearest" });
  return true;
}

function openDialog(id) {
  const dialog = document.getElementById(id);
  if (id === "help") fillHelp();
  dialog.open ? dialog.close() : dialog.showModal();
}

function fillHelp() {
  const list = document.getElementById("help-keys");
  list.replaceChildren();
  const add = (keys, text) => {
    const term = document.createElement("dt");
    for (const key of keys) {
      const box = document.createElement("kbd");
      box.textContent = key;
      term.append(box, " ");
    }
    const what = document.createElement("dd");
    what.textContent = text;
    list.append(term, what);
  };
  if (document.querySelector("[data-row]")) add(["j", "k"], "Next, previous row; Enter opens it");
  for (const element of $$("[data-focus-key]")) add([element.dataset.focusKey], element.dataset.help);
  for (const element of $$("[data-key][data-help]")) add(element.dataset.key.split(" "), element.dataset.help);
  add(["?"], "This help");
}

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") return escape(event);
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  if (document.querySelector("dialog[open]") && event.key !== "?") return;
  if (event.target.closest("input, textarea, select, [contenteditable]")) return;
  if (event.key === "ArrowLeft" || event.key === "ArrowRight") {
    if (stepToken(event.target, event.key === "ArrowRight" ? 1 : -1)) event.preventDefault();
    return;
  }
  if (busy && (event.key.length === 1 || event.key === "Enter") && !event.repeat) {
    waiting.push(event.key);
    event.preventDefault();
  } else if (!busy && event.key.length === 1 && press(event.key)) {
    event.preventDefault();
  }
});

function escape(event) {
  hideTip();
  closeMenus();
  if (event.target.matches?.("input")) event.target.blur();
}

/* Keys pressed while a page is on its way are meant for that page, in their order. */
function replay() {
  if (document.querySelector("[data-trial]")) waiting.length = 0; // an answer is for a trial that was seen
  while (waiting.length && !busy) {
    const key = waiting.shift();
    const focused = document.activeElement;
    const writes = focused.matches("input");
    if (key === "Enter") writes ? focused.form?.requestSubmit() : focused.click();
    else if (writes) document.execCommand("insertText", false, key);
    else press(key);
  }
}

const isMain = (event) => event.detail.target?.id === "main";
document.addEventListener("htmx:beforeRequest", (event) => { if (isMain(event)) busy = true; });
document.addEventListener("htmx:afterRequest", (event) => {
  if (isMain(event) && !event.detail.successful) busy = false;
});
document.addEventListener("htmx:afterSettle", (event) => {
  if (!isMain(event)) return;
  busy = false;
  replay();
});

/* ---- Tooltips: the title attribute, on hover and on focus ---- */

const tip = document.getElementById("tip");
let tipOwner = null;

function showTip(element) {
  if (element.title) {
    element.dataset.tip = element.title;
    element.setAttribute("aria-description", element.title);
    element.removeAttribute("title");
  }
  tipOwner = element;
  tip.textContent = element.dataset.tip;
  tip.classList.toggle("number", element.classList.contains("t"));
  tip.hidden = false;
  const box = element.getClientRects()[0] ?? element.getBoundingClientRect();
  const own = tip.getBoundingClientRect();
  const left = Math.max(8, Math.min(box.left + box.width / 2 - own.width / 2, innerWidth - own.width - 8));
  const above = box.top - own.height - 6;
  tip.style.left = `${left}px`;
  tip.style.top = `${above > 4 ? above : box.bottom + 6}px`;
}

function hideTip() {
  tip.hidden = true;
  tipOwner = null;
  $$(".t.here").forEach((token) => token.classList.remove("here"));
}

const tipped = (node) => node.closest?.("[title], [data-tip]");
document.addEventListener("mouseover", (event) => {
  const element = tipped(event.target);
  if (element && element !== tipOwner) showTip(element);
  else if (!element && tipOwner && !tip.contains(event.target)) hideTip();
});
document.addEventListener("focusin", (event) => {
  hideTip();
  const element = event.target;
  if (element.matches?.("[title], [data-tip]") && element.matches(":focus-visible")) showTip(element);
});
document.addEventListener("focusout", hideTip);
document.addEventListener("scroll", hideTip, { passive: true, capture: true });

/* Within a focused context the arrows step through the active tokens. */
function stepToken(context, step) {
  if (!context.matches?.(".context")) return false;
  const active = $$(".t[title], .t[data-tip]", context);
  if (!active.length) return false;
  const at = active.findIndex((token) => token.classList.contains("here"));
  const start = active.findIndex((token) => token.classList.contains("peak"));
  const next = active[at < 0 ? Math.max(0, start) : (at + step + active.length) % active.length];
  hideTip();
  next.classList.add("here");
  showTip(next);
  announce(`${next.textContent.trim()} ${next.dataset.tip}`);
  return true;
}

/* ---- Charts ---- */

function themed(value, style) {
  if (typeof value === "string") {
    const name = /^var\((--[\w-]+)\)$/.exec(value);
    return name ? resolve(style.getPropertyValue(name[1]).trim()) : value;
  }
  if (Array.isArray(value)) return value.map((item) => (typeof item === "object" ? themed(item, style) : item));
  if (value && typeof value === "object") {
    return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, themed(item, style)]));
  }
  return value;
}

/* Plotly knows no color-mix(): let the browser work it out. */
function resolve(colour) {
  if (!colour.includes("(")) return colour;
  const probe = document.createElement("i");
  probe.style.color = colour;
  document.body.append(probe);
  const computed = getComputedStyle(probe).color;
  probe.remove();
  const parts = /^color\(srgb ([\d.e-]+) ([\d.e-]+) ([\d.e-]+)(?: \/ ([\d.]+))?\)$/.exec(computed);
  if (!parts) return computed;
  const [red, green, blue] = parts.slice(1, 4).map((part) => Math.round(part * 255));
  return `rgba(${red},${green},${blue},${parts[4] ?? 1})`;
}

function drawCharts(root = document) {
  if (typeof Plotly === "undefined") return;
  const style = getComputedStyle(document.documentElement);
  const font = getComputedStyle(document.body).fontFamily;
  for (const element of $$("[data-figure]", root)) {
    const figure = themed(JSON.parse(element.dataset.figure), style);
    figure.layout.font.family = font;
    Plotly.react(element, figure.data, figure.layout, { displayModeBar: false, responsive: true, doubleClick: false });
  }
}

/* ---- Pages that come by HTMX ---- */

function announce(text) {
  document.getElementById("announce").textContent = text;
}

document.addEventListener("htmx:beforeSwap", (event) => {
  hideTip();
  if (typeof Plotly !== "undefined") $$(".js-plotly-plot", event.detail.target).forEach((plot) => Plotly.purge(plot));
});
document.addEventListener("htmx:afterSwap", (event) => {
  drawCharts();
  if (!isMain(event)) return;
  const said = document.querySelector("[data-announce]");
  if (said) announce(said.textContent.trim());
});
document.addEventListener("htmx:historyRestore", () => drawCharts());
document.addEventListener("DOMContentLoaded", () => drawCharts());
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawCharts());
document.addEventListener("click", (event) => {
  const element = event.target.closest("[data-open]");
  if (element) openDialog(element.dataset.open);
  closeMenus(event.target);
});

/* Menus are plain details: they work without this, but would stay open. */
function closeMenus(clicked = null) {
  for (const menu of $$(".menu[open]")) {
    if (menu.contains(clicked)) continue;
    if (menu.contains(document.activeElement)) menu.querySelector("summary").focus();
    menu.open = false;
  }
}

/* ---- Blind trials: from first paint to the answer, less the time that the tab was hidden ---- */

const clock = { shown: 0, hidden: 0, since: null };
const SOONEST = 200; // milliseconds: a key that comes earlier was meant for the trial before

function startClock() {
  if (!document.querySelector("[data-trial]")) return;
  clock.shown = Infinity;
  requestAnimationFrame(() => requestAnimationFrame(() => {
    Object.assign(clock, { shown: performance.now(), hidden: 0, since: document.hidden ? performance.now() : null });
  }));
}

document.addEventListener("visibilitychange", () => {
  const now = performance.now();
  if (document.hidden) clock.since = now;
  else if (clock.since !== null) {
    clock.hidden += now - clock.since;
    clock.since = null;
  }
});
document.addEventListener("click", (event) => {
  const form = event.target.closest("[data-trial] form");
  const field = form?.elements.namedItem("seconds");
  if (!field || !event.target.closest("button[name]")) return;
  const passed = performance.now() - clock.shown;
  if (passed < SOONEST) {
    event.preventDefault();
    event.stopImmediatePropagation();
    return;
  }
  field.value = (passed / 1000).toFixed(3);
  form.elements.namedItem("hidden_seconds").value = (Math.min(clock.hidden, passed) / 1000).toFixed(3);
}, true);
document.addEventListener("DOMContentLoaded", startClock);
document.addEventListener("htmx:afterSettle", startClock);
