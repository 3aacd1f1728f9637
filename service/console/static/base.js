// What every page does: times in the viewer's zone, menus, copying, and requests with the CSRF token.

const LANGUAGE = document.documentElement.lang || "en";
const LOCALE = (navigator.languages || []).find((one) => one.split("-")[0] === LANGUAGE) || LANGUAGE; // dates as at home
const MINUTE = 60, HOUR = 3600, DAY = 86400;
const FRESHEN_MS = 15000; // relative times; the smallest unit shown for long is a minute
const TOAST_MS = 6000;
const THEME_S = 365 * DAY;

/** The JSON of a `<script type="application/json" id="...">`, or `null`. */
export function dataOf(id) {
  const block = document.getElementById(id);
  return block ? JSON.parse(block.textContent) : null;
}

const TEXTS = dataOf("base-texts") || {};

/** A text with its `{placeholders}` filled. */
export function fill(text, values = {}) {
  return String(text).replace(/\{(\w+)\}/g, (whole, name) => (name in values ? String(values[name]) : whole));
}

/** An element: attributes (`class`, `href`, `data-x`; `null` and `false` are left out), then children, texts as texts. */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return made;
}

/** An icon of icons.svg. */
export function icon(name) {
  const space = "http://www.w3.org/2000/svg";
  const made = document.createElementNS(space, "svg"), use = document.createElementNS(space, "use");
  made.setAttribute("class", "icon");
  made.setAttribute("aria-hidden", "true");
  use.setAttribute("href", `/static/icons.svg#${name}`);
  made.append(use);
  return made;
}

/** A word with the mark and colour of its kind, as the macro `badge`. */
export function badge(kind, text, mark = kind) {
  return element("span", { class: `badge badge-${kind}` }, icon(mark), text);
}

/** What stands for a value that is not known. */
export function unknown() {
  return element("span", { class: "unknown" }, element("span", { "aria-hidden": "true" }, "–"));
}

/** One line without control characters or marks that turn the direction of writing, as the filter `plain`. */
export function plain(value, longest = 200) {
  const text = value === null || value === undefined ? "" : String(value).slice(0, longest + 1);
  const shown = text.replace(/[\p{C}\p{Zl}\p{Zp}]|(?! )\p{Zs}/gu, "?");
  return shown.length <= longest ? shown : `${shown.slice(0, longest - 1)}…`;
}

const FORMATS = new Map();

/** A number in the viewer's language; `null` for what is no finite number. */
export function figure(value, digits = 1) {
  if (typeof value !== "number" || !Number.isFinite(value)) return null;
  if (Math.abs(value) >= 1e15) return value.toExponential(3);
  if (!FORMATS.has(digits)) {
    FORMATS.set(digits, new Intl.NumberFormat(LANGUAGE, { minimumFractionDigits: digits, maximumFractionDigits: digits }));
  }
  return FORMATS.get(digits).format(value).replace(/^-(?=[0.,]+$)/, "");
}

/** A time span in its two largest units, as the macro `duration`. */
export function duration(seconds) {
  if (typeof seconds !== "number" || !Number.isFinite(seconds) || seconds < 0) return "";
  let left = Math.floor(seconds);
  const parts = [];
  for (const [unit, size] of [["d", DAY], ["h", HOUR], ["min", MINUTE], ["s", 1]]) {
    const count = Math.floor(left / size);
    left -= count * size;
    if (count || parts.length) parts.push([count, TEXTS[`span.${unit}`] || unit]);
  }
  const shown = parts.slice(0, 2).filter(([count]) => count);
  return (shown.length ? shown : [[0, TEXTS["span.s"] || "s"]]).map(([count, unit]) => `${count}\u00a0${unit}`).join(" ");
}

const RELATIVE = new Intl.RelativeTimeFormat(LOCALE, { numeric: "always", style: "short" });
const FORMS = {
  minute: new Intl.DateTimeFormat(LOCALE, { dateStyle: "medium", timeStyle: "short" }),
  second: new Intl.DateTimeFormat(LOCALE, { dateStyle: "medium", timeStyle: "medium" }),
  date: new Intl.DateTimeFormat(LOCALE, { dateStyle: "medium" }),
  full: new Intl.DateTimeFormat(LOCALE, { dateStyle: "full", timeStyle: "long" }),
};

/** Seconds since 1970 as words. `form`: relative, minute, second, date, full. */
export function moment(ts, form = "relative") {
  if (typeof ts !== "number" || !Number.isFinite(ts)) return "";
  if (form !== "relative") return (FORMS[form] || FORMS.minute).format(ts * 1000);
  const past = ts - Date.now() / 1000, size = Math.abs(past);
  if (size < 10) return TEXTS.now || "";
  if (size < MINUTE) return RELATIVE.format(Math.trunc(past), "second");
  if (size < HOUR) return RELATIVE.format(Math.trunc(past / MINUTE), "minute");
  if (size < 2 * DAY) return RELATIVE.format(Math.trunc(past / HOUR), "hour");
  return RELATIVE.format(Math.trunc(past / DAY), "day");
}

/** A `<time>` that stays fresh. */
export function timeElement(ts, form = "relative") {
  const at = new Date(ts * 1000);
  if (typeof ts !== "number" || Number.isNaN(at.getTime())) return unknown();
  const made = element("time", { datetime: at.toISOString().replace(/\.\d+Z$/, "Z"), "data-form": form });
  writeTime(made);
  return made;
}

function writeTime(node) {
  const ts = Date.parse(node.dateTime) / 1000;
  if (Number.isNaN(ts)) return;
  const text = moment(ts, node.dataset.form), full = moment(ts, "full");
  if (node.textContent !== text) node.textContent = text;
  if (node.title !== full) node.title = full;
}

/** Write all times below a node in the viewer's zone and language. */
export function writeTimes(root = document) {
  for (const node of root.querySelectorAll("time[data-form]")) writeTime(node);
}

/** Say something to a screen reader. */
export function announce(text) {
  const place = document.getElementById("announce");
  if (place) place.textContent = text;
}

/** Show a short message for some seconds, and say it. */
export function toast(text) {
  const made = element("div", { class: "toast" }, text);
  document.getElementById("toasts")?.append(made);
  announce(text);
  setTimeout(() => made.remove(), TOAST_MS);
}

/** What went wrong with a request. */
export class RequestError extends Error {
  constructor(status, what) {
    super(status ? fill(TEXTS.failed || "{status} {what}", { status, what }) : TEXTS.away || what);
    this.status = status;
  }
}

/**
 * The JSON that a path answers with. A session that has ended leads to the login page, unless the page is to `stay`.
 * `options` as of fetch(); with `form` (an object or FormData) it posts that.
 */
export async function request(path, { form = null, stay = false, ...options } = {}) {
  const headers = { Accept: "application/json", "X-CSRF": document.body.dataset.csrf || "", ...options.headers };
  const sent = form ? { method: "POST", body: new URLSearchParams(form), ...options, headers } : { ...options, headers };
  let answer;
  try {
    answer = await fetch(path, { credentials: "same-origin", ...sent });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new RequestError(0, String(error.message));
  }
  if (answer.status === 401 && !stay) location.assign(`/login?next=${encodeURIComponent(location.pathname + location.search)}`);
  const body = (answer.headers.get("content-type") || "").includes("json") ? await answer.json() : null;
  if (!answer.ok) throw new RequestError(answer.status, plain(body?.what || body?.error || answer.statusText));
  return body;
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    toast(TEXTS.copied);
  } catch {
    toast(TEXTS["copy-failed"]);
  }
}

function clicked(event) {
  const at = event.target instanceof Element ? event.target : null;
  const copier = at?.closest("[data-copy]"), choice = at?.closest("[data-theme-choice]");
  if (copier) copy(copier.dataset.copy);
  if (choice) chooseTheme(choice.dataset.themeChoice);
  for (const menu of document.querySelectorAll("details.menu[open]")) {
    if (!menu.contains(at)) menu.open = false;
  }
}

function pressed(event) {
  const menu = event.target instanceof Element ? event.target.closest("details.menu[open]") : null;
  if (!menu) return;
  const items = [...menu.querySelectorAll(".menu-body :is(a, button)")].filter((item) => item.offsetParent);
  const at = items.indexOf(document.activeElement), last = items.length - 1;
  const next = { ArrowDown: at >= last ? 0 : at + 1, ArrowUp: at <= 0 ? last : at - 1, Home: 0, End: last }[event.key];
  if (event.key === "Escape") {
    menu.open = false;
    menu.querySelector("summary").focus();
  } else if (next !== undefined && items.length) {
    event.preventDefault();
    items[next].focus();
  }
}

function chooseTheme(theme) {
  const root = document.documentElement, secure = location.protocol === "https:" ? "; Secure" : "";
  if (theme) root.dataset.theme = theme;
  else delete root.dataset.theme;
  document.cookie = `theme=${theme}; Path=/; Max-Age=${theme ? THEME_S : 0}; SameSite=Lax${secure}`;
  for (const button of document.querySelectorAll("[data-theme-choice]")) {
    button.setAttribute("aria-pressed", String(button.dataset.themeChoice === theme));
  }
  document.dispatchEvent(new CustomEvent("theme")); // charts draw anew
}

/** What scrolls and holds nothing to focus can be reached with the keyboard itself. */
export function reachScrollers(root = document) {
  for (const box of root.querySelectorAll("pre, .table-wrap")) {
    if (box.tabIndex < 0 && box.scrollWidth > box.clientWidth && !box.querySelector("a, button, input, select")) box.tabIndex = 0;
  }
}

/** Of a form that came back: the first field that is wrong, unless the page has a place of its own to begin. */
function beginAtWrong() {
  if (document.activeElement === document.body && !document.getElementById("errors")) {
    document.querySelector('main [aria-invalid="true"]')?.focus();
  }
}

for (const group of document.querySelectorAll(".themes")) group.hidden = false;
document.addEventListener("click", clicked);
document.addEventListener("keydown", pressed);
window.addEventListener("resize", () => reachScrollers());
reachScrollers();
beginAtWrong();
writeTimes();
setInterval(() => writeTimes(), FRESHEN_MS);
