// The cells of one board, as templates/fleet/row.html writes them: change both.

import { badge, dataOf, duration, element, figure, fill, plain, timeElement, unknown } from "./base.js";

export const TEXTS = dataOf("fleet-texts") || {};
export const FACTS = dataOf("fleet-facts") || {};
const NO_RULE = new Set(["", "run", "unlimited", "plan"]);
const MOST_ALARMS = 3; // of a row

/** The words of a closed list, else the word itself, cut. */
export function word(list, key, longest = 32) {
  const words = TEXTS[list] || {};
  return Object.hasOwn(words, key) ? words[key] : plain(key, longest);
}

function known(list, key) {
  const words = TEXTS[list] || {};
  return Object.hasOwn(words, key) ? words[key] : "";
}

const kind = (status) => (Object.hasOwn(FACTS.kinds, status) ? FACTS.kinds[status] : "neutral");
const line = (...children) => element("span", { class: "line" }, ...children);
const quiet = (...children) => element("span", { class: "quiet" }, ...children);
const quietLine = (...children) => element("span", { class: "line quiet" }, ...children);
const told = (text, longest) => element("bdi", {}, plain(text, longest));

function none() {
  const made = unknown();
  made.append(element("span", { class: "visually-hidden" }, TEXTS.unknown));
  return made;
}

function number(value, unit, digits = 1) {
  const text = figure(value, digits);
  return text === null ? none() : element("span", { class: "number" }, `${text}\u00a0`, element("span", { class: "unit" }, unit));
}

function board(row) {
  const state = badge(kind(row.state), word("status", row.state));
  return [element("a", { class: "name", href: `/device/${row.name}` }, row.name), line(state)];
}

function model(row) {
  const cells = [row.model ? line(told(row.model, 64), " ", told(row.model_version, 32)) : none()];
  if (row.profile || row.agent) {
    cells.push(quietLine(told(row.profile, 40), row.profile && row.agent ? " · " : "", told(row.agent, 24)));
  }
  return cells;
}

function heat(row) {
  const cells = [element("span", { class: "line strong" }, number(row.temperature_celsius, "°C"))];
  if (typeof row.delta_t_celsius === "number") cells.push(quietLine("ΔT ", number(row.delta_t_celsius, "K")));
  return cells;
}

function power(row) {
  const cells = [], charged = typeof row.charge === "number";
  if (charged) cells.push(line(number(row.charge * 100, "%", 0)));
  if (typeof row.power_watts === "number") {
    cells.push(quietLine(number(row.power_watts, "W"), row.power_is_modelled ? ` ${TEXTS.fleet.modelled}` : ""));
  } else if (!charged) cells.push(none());
  return cells;
}

function progress(row) {
  const work = row.job, share = Math.min(Math.max(work.progress, 0), 1);
  const bar = element("progress", { max: 1, value: share, "aria-label": fill(TEXTS.fleet.progress, { board: row.name }) });
  const shown = element("span", { class: "progress" }, bar, element("span", { class: "number" }, `${figure(work.progress * 100, 0)}\u00a0%`));
  const left = typeof work.eta_s === "number" ? duration(work.eta_s) : "";
  return line(shown, left ? [" ", quiet(element("span", { class: "number" }, left))] : []);
}

function job(row) {
  if (row.complaint) return [line(told(row.complaint))];
  const work = row.job;
  if (!work) return [none()];
  const what = element("a", { href: `/device/${row.name}/jobs/${work.id}` }, known("status", `type.${work.type}`) || plain(work.type, 32));
  const status = element("span", { class: `status tone-${kind(work.status)}` }, word("status", work.status));
  const step = work.step && !work.ended ? [" ", quiet(known("status", `step.${work.step}`) || plain(work.step, 32))] : [];
  const cells = [line(what, " ", status, step)];
  if (work.ended) {
    const why = work.reason_code ? element("span", { title: plain(work.reason_code, 64) }, word("reason", work.reason_code, 64)) : null;
    cells.push(quietLine(why || (typeof work.ts === "number" ? timeElement(work.ts) : "")));
  } else if (typeof work.progress === "number") cells.push(progress(row));
  return cells;
}

function waits(until) {
  const below = known("status", `until_below.${until.what}`), above = known("status", `until_above.${until.what}`);
  const moment = known("status", `until_ts.${until.what}`);
  if (below && typeof until.below === "number") return [fill(below, { value: figure(until.below, 1) })];
  if (above && typeof until.above === "number") return [fill(above, { value: figure(until.above * 100, 0) })];
  if (moment && typeof until.ts === "number") return [`${moment} `, timeElement(until.ts)];
  return [known("status", `until.${until.what}`) || plain(until.what, 40)];
}

function rule(row) {
  const open = row.job && !row.job.ended ? row.job : null, cells = [];
  if (!NO_RULE.has(row.rule)) {
    cells.push(element("span", { class: "line", title: plain(row.rule, 64) }, word("rule", row.rule, 64)));
  } else if (open?.reason_code) {
    cells.push(element("span", { class: "line", title: plain(open.reason_code, 64) }, word("reason", open.reason_code, 64)));
  } else if (!open?.until) cells.push(none());
  if (open?.until) cells.push(quietLine(`${TEXTS.fleet.waits} `, waits(open.until)));
  return cells;
}

function alarms(row) {
  if (!row.alarms.length) return [none()];
  const cells = row.alarms.slice(0, MOST_ALARMS).flatMap((alarm) => [badge("warning", word("alarm", alarm), "alarm"), " "]);
  if (row.alarms.length > MOST_ALARMS) cells.push(quiet(`+${row.alarms.length - MOST_ALARMS}`));
  return cells;
}

const CELLS = [
  ["board", board], ["model", model], ["heat", heat], ["power", power], ["job", job], ["rule", rule], ["alarms", alarms],
  ["seen", (row) => [typeof row.last_seen === "number" ? timeElement(row.last_seen) : none()]],
];

/** A row of the table for a board, not filled yet. */
export function makeRow(name) {
  const made = element("tr", { "data-board": name });
  if (FACTS.choose) {
    const box = element("input", { type: "checkbox", name: "boards", value: name, "aria-label": fill(TEXTS.fleet.pick, { board: name }) });
    made.append(element("td", { class: "pick" }, box));
  }
  for (const [column] of CELLS) {
    const first = column === "board";
    const label = first ? {} : { "data-label": TEXTS.fleet[`column.${column}`] };
    made.append(element(first ? "th" : "td", { class: `c-${column}`, ...(first ? { scope: "row" } : {}), ...label }));
  }
  return made;
}

/** Fill a row of the table; cells that say the same stay as they are, and so does what is focused in them. */
export function fillRow(line, row) {
  for (const [column, write] of CELLS) {
    const cell = line.querySelector(`.c-${column}`), fresh = element(cell.localName, {}, ...write(row));
    if (!cell.childNodes.length || said(cell) !== said(fresh)) {
      const focused = cell.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
      if (column !== "seen" && cell.childNodes.length && words(cell) !== words(fresh)) mark(cell);
      cell.replaceChildren(...fresh.childNodes);
      if (focused) [...cell.querySelectorAll("a")].find((link) => link.getAttribute("href") === focused)?.focus();
    }
  }
}

const words = (cell) => cell.textContent.replace(/\s+/g, " ").trim();

/** What a cell says and shows, for a comparison. */
function said(cell) {
  const shown = [...cell.querySelectorAll("a, progress, use, time, [title], .status")].map(
    (node) => ["href", "value", "datetime", "class"].map((name) => node.getAttribute(name)).join(" "),
  );
  return [words(cell), ...shown].join("\n");
}

function mark(cell) {
  cell.classList.remove("changed");
  void cell.offsetWidth; // the animation begins anew
  cell.classList.add("changed");
}
