// The list of boards: what is typed and clicked becomes a query, the address holds it, and rows stay fresh.

import { announce, element, figure, fill, icon, request, toast, writeTimes } from "./base.js";
import { FACTS, TEXTS, fillRow, makeRow } from "./fleet_rows.js";
import { drawSummary } from "./fleet_summary.js";
import { follow, restore } from "./fleet_picks.js";
import { connect } from "./live.js";

const TYPING_MS = 80; // a pause of this length ends a word; with the answer it stays under 200 ms
const RENEW_MS = 10000;
const form = document.getElementById("filters"), rows = document.getElementById("boards");
const search = form.elements.q, renewButton = document.getElementById("renew");
let query = new URLSearchParams(location.search);
let asked = null, stream = null, typing = 0, waiting = null;

const names = () => [...rows.children].map((line) => line.dataset.board);
const held = () => rows.matches(":hover") || rows.contains(document.activeElement);
const same = (one, other) => one.length === other.length && one.every((name, at) => name === other[at]);

/** The address of the list with a query, some of its parameters set; an empty value takes one away. */
function address(changes = {}, { keepPage = false } = {}) {
  const wanted = new URLSearchParams(query);
  if (!keepPage) wanted.delete("page");
  for (const [name, value] of Object.entries(changes)) {
    wanted.delete(name);
    for (const one of [value].flat()) if (one !== "") wanted.append(name, one);
  }
  const text = String(wanted);
  return text ? `/fleet?${text}` : "/fleet";
}

/** Go to another address of the list without leaving the page. `step`: the back button comes back here. */
function go(href, { step = true } = {}) {
  const to = new URL(href, location.href);
  if (step && to.search !== location.search) history.pushState(null, "", to);
  else history.replaceState(history.state, "", to);
  query = new URLSearchParams(to.search);
  showControls();
  return load({ renew: true });
}

async function load({ renew }) {
  asked?.abort();
  const mine = (asked = new AbortController());
  try {
    const answer = await request(`/api/fleet?${query}`, { signal: mine.signal });
    if (mine === asked) show(answer, renew);
  } catch (error) {
    if (error.name !== "AbortError" && renew) toast(fill(TEXTS.fleet.failed, { what: error.message }));
  }
}

/** Show an answer of /api/fleet; where somebody points at the rows these keep their places. */
function show(answer, renew) {
  drawSummary(answer.summary);
  const fresh = answer.rows.map((row) => row.name), before = names();
  waiting = !renew && held() && !same(fresh, before) ? answer : null;
  renewButton.hidden = waiting === null;
  if (waiting) {
    update(answer.rows);
    return;
  }
  const lines = new Map([...rows.children].map((line) => [line.dataset.board, line]));
  const wanted = answer.rows.map((row) => {
    const line = lines.get(row.name) || makeRow(row.name);
    fillRow(line, row);
    return line;
  });
  if (!same(fresh, before)) {
    rows.replaceChildren(...wanted);
    restore(rows);
    listen();
  }
  showCounts(answer);
  performance.mark("fleet-shown");
}

function update(changed) {
  const lines = new Map([...rows.children].map((line) => [line.dataset.board, line]));
  for (const row of changed) {
    const line = lines.get(row.name);
    if (line) fillRow(line, row);
  }
}

function showCounts({ total, page, pages, summary }) {
  const whole = figure(summary.total, 0), found = figure(total, 0);
  const key = total !== summary.total ? "result" : total === 1 ? "result-one" : "result-all";
  const text = fill(TEXTS.fleet[key], { found, total: whole });
  const place = document.getElementById("result");
  if (place.textContent !== text) place.textContent = text;
  document.getElementById("list").hidden = !total;
  document.getElementById("none-fit").hidden = Boolean(total) || !summary.total;
  document.getElementById("no-boards").hidden = Boolean(summary.total);
  const all = document.getElementById("roll-out-filter");
  if (all) {
    all.hidden = !total;
    all.querySelector("span").textContent = fill(TEXTS.fleet["roll-out-filter"], { total: found });
  }
  showPager(page, pages);
}

function showPager(page, pages) {
  const place = document.getElementById("pager");
  if (Number(place.dataset.page) === page && Number(place.dataset.pages) === pages) return;
  Object.assign(place.dataset, { page, pages });
  const to = (number, rel, ...words) => element("a", { class: "button", rel, href: address({ page: number > 1 ? String(number) : "" }) }, ...words);
  const parts = [];
  if (page > 1) parts.push(to(page - 1, "prev", icon("left"), TEXTS.pager.before));
  parts.push(element("span", { class: "where" }, fill(TEXTS.pager.where, { page, pages })));
  if (page < pages) parts.push(to(page + 1, "next", TEXTS.pager.next, icon("right")));
  place.replaceChildren(...(pages > 1 ? [element("nav", { class: "pager", "aria-label": TEXTS.pager.label }, ...parts)] : []));
}

/** Controls and links by the query in the address. */
function showControls() {
  const states = new Set(query.getAll("state").flatMap((value) => value.split(","))), alarmed = query.get("alarmed");
  states.delete("");
  if (document.activeElement !== search) search.value = query.get("q") || "";
  for (const [name, usual] of [["group", ""], ["sort", "name"], ["order", "asc"], ["rows", "50"]]) {
    if (form.elements[name]) form.elements[name].value = query.get(name) || usual;
  }
  for (const hidden of form.querySelectorAll("input[type=hidden]")) hidden.remove();
  for (const state of states) form.append(element("input", { type: "hidden", name: "state", value: state }));
  if (alarmed) form.append(element("input", { type: "hidden", name: "alarmed", value: alarmed }));
  for (const tile of document.querySelectorAll("[data-tile]")) {
    const name = tile.dataset.tile, on = name === "all" ? !states.size && !alarmed : name === "alarmed" ? alarmed === "1" : states.has(name);
    tile.toggleAttribute("aria-current", on);
    if (on) tile.setAttribute("aria-current", "true");
    const toggled = new Set(states);
    if (!toggled.delete(name)) toggled.add(name);
    if (name === "all") tile.href = address({ state: "", alarmed: "" });
    else if (name === "alarmed") tile.href = address({ alarmed: on ? "" : "1" });
    else tile.href = address({ state: [...toggled] });
  }
  showSorts();
  const filters = new URLSearchParams(query);
  for (const name of ["sort", "order", "rows", "page"]) filters.delete(name);
  const clear = address({ q: "", state: "", alarmed: "", group: "" });
  for (const link of document.querySelectorAll("#clear, [data-clear]")) link.href = clear;
  document.getElementById("clear").hidden = !String(filters);
  const all = document.getElementById("roll-out-filter");
  if (all) all.href = `/roll-outs/new?${new URLSearchParams({ filter: String(filters) })}`;
}

function showSorts() {
  const sort = query.get("sort") || "name", falls = query.get("order") === "desc";
  for (const link of document.querySelectorAll("[data-sort]")) {
    const name = link.dataset.sort, on = name === sort, head = link.closest("th");
    const next = on ? !falls : FACTS.falling.includes(name);
    link.href = address({ sort: name === "name" ? "" : name, order: next ? "desc" : "" });
    link.classList.toggle("sorts", on);
    link.querySelector("use").setAttribute("href", `/static/icons.svg#${on ? (falls ? "sort-down" : "sort-up") : "sort"}`);
    if (on) head.setAttribute("aria-sort", falls ? "descending" : "ascending");
    else if (!head.querySelector(".sorts")) head.removeAttribute("aria-sort");
  }
}

function formQuery() {
  const read = (name, usual) => (form.elements[name] && form.elements[name].value !== usual ? form.elements[name].value : "");
  const values = { q: search.value.trim(), sort: read("sort", "name"), order: read("order", "asc"), rows: read("rows", "50") };
  return address(form.elements.group ? { ...values, group: form.elements.group.value } : values);
}

function showBroker({ connected }) {
  document.getElementById("no-broker").hidden = connected;
}

/** Hear of the rows that are shown. */
function listen() {
  stream?.close();
  const boards = names();
  stream = connect(`boards=${boards.join(",")}`, {
    hello: showBroker,
    link: showBroker,
    crowded: () => load({ renew: false }),
    rows: (told) => {
      update(told.rows);
      drawSummary(told.summary);
    },
  });
}

function clicked(event) {
  if (event.defaultPrevented || event.button || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
  const link = event.target instanceof Element ? event.target.closest("a[href]") : null;
  if (!link || new URL(link.href).pathname !== "/fleet" || link.closest(".bar")) return;
  event.preventDefault();
  const paged = link.closest("#pager"), sorted = link.dataset.sort;
  if (link.closest("#clear, [data-clear]")) search.value = "";
  go(link.href).then(() => {
    if (paged) document.getElementById("result").scrollIntoView({ block: "nearest" });
    if (sorted) announce(TEXTS.fleet.renewed);
  });
}

function pressed(event) {
  const at = event.target instanceof Element ? event.target : null, typed = at?.closest("input:not([type=checkbox]), textarea, select");
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "/" && !typed) {
    event.preventDefault();
    search.focus();
    search.select();
  } else if (event.key === "ArrowDown" && at === search) {
    event.preventDefault();
    rows.querySelector("a.name")?.focus();
  } else if (rows.contains(at)) moveFocus(event, at);
}

function moveFocus(event, at) {
  const line = at.closest("tr"), last = rows.lastElementChild;
  const next = { ArrowDown: line.nextElementSibling, ArrowUp: line.previousElementSibling, Home: rows.firstElementChild, End: last }[event.key];
  if (next === undefined) return;
  event.preventDefault();
  const kind = at.matches("input[type=checkbox]") ? "input[type=checkbox]" : "a.name";
  (next || (event.key === "ArrowUp" ? null : line))?.querySelector(kind)?.focus();
  if (!next && event.key === "ArrowUp") search.focus();
}

document.documentElement.classList.add("scripted");
search.addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(() => go(formQuery(), { step: false }), TYPING_MS);
});
form.addEventListener("change", (event) => {
  if (event.target !== search) go(formQuery());
});
form.addEventListener("submit", (event) => {
  event.preventDefault();
  clearTimeout(typing);
  go(formQuery());
});
document.addEventListener("click", clicked);
document.addEventListener("keydown", pressed);
window.addEventListener("popstate", () => {
  query = new URLSearchParams(location.search);
  search.blur();
  showControls();
  load({ renew: true });
});
renewButton.addEventListener("click", () => {
  if (waiting) show(waiting, true);
  rows.querySelector("a.name")?.focus();
});
setInterval(() => {
  if (!document.hidden) load({ renew: false });
}, RENEW_MS);
document.addEventListener("visibilitychange", () => {
  if (!document.hidden) load({ renew: false });
});
follow(rows);
restore(rows);
listen();
writeTimes();

