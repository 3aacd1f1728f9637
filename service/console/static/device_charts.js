// The charts of one board on its page: which span is shown, loading, live values, and the list of marks.

import { announce, element, fill, moment, plain, request, timeElement } from "/static/base.js";
import { Charts } from "/static/charts.js";

const MOST_SPAN = 91 * 86400; // seconds; the server gives a day more
const LEAST_SPAN = 5;
const LIVE_ROOM = 0.02; // share of a live span that is empty at its end: the newest value is seen
const LATE_S = 10; // a board's clock and ours may differ by seconds
const MOST_POINTS = 4000; // with what came live; then all is asked for anew, in buckets
const MOST_EARLY = 200; // messages that come while charts are asked for
const RENEW_MS = 300_000;
const MOST_BUCKETS = 1500, LEAST_BUCKETS = 200;
const MOST_MARKS = 1000; // of a chart; as the server
const SHOWN_MARKS = 300; // rows of the list, the newest; the server bounds what is drawn
const DECISIONS = ["action", "rule", "frequency_rule", "depth_rule", "batch_rule"]; // as the server
const SAME_ALARM_S = 90;
const LOOKS = { PAUSE: "hold", ABORT: "hold", SLOW: "slow" };

/** How a mark is drawn: by what it says, not by its colour alone; the list has its words. */
export function lookOf(mark) {
  return mark.kind === "decision" ? LOOKS[mark.values.action] ?? "run" : "alarm";
}

export class DeviceCharts {
  constructor(settings) {
    this.settings = settings;
    this.place = document.getElementById("charts-place");
    this.tools = document.getElementById("chart-tools");
    this.words = settings.words;
    this.charts = new Charts(this.place, settings.panels, {
      words: settings.words,
      onSpan: (since, until) => this.show({ since, until }),
    });
    this.asked = null;
    this.early = [];
    this.span = this.fromAddress();
    this.tools.hidden = false;
    this.tools.addEventListener("submit", (event) => this.chosen(event));
    this.tools.addEventListener("click", (event) => this.clicked(event));
    addEventListener("popstate", () => this.show(this.fromAddress(), false));
    setInterval(() => this.renew(), RENEW_MS);
  }

  /** What the address asks for: `since` and `until`, or a `span` that ends now. */
  fromAddress() {
    const given = new URLSearchParams(location.search);
    const since = Number(given.get("since")), until = Number(given.get("until")), span = Number(given.get("span"));
    if (since > 0 && until > since && until - since <= MOST_SPAN) return { since, until };
    return { span: span >= LEAST_SPAN && span <= MOST_SPAN ? span : this.settings.span };
  }

  /** Since and until of the span shown, seconds since 1970. */
  ends() {
    if (this.span.since) return [this.span.since, this.span.until];
    const now = Date.now() / 1000;
    return [now - this.span.span, now + this.span.span * LIVE_ROOM];
  }

  /** Show a span: {span} that ends now, or {since, until}. */
  async show(span, remember = true) {
    this.span = span;
    if (remember) {
      const given = new URLSearchParams(span.since ? { since: span.since.toFixed(1), until: span.until.toFixed(1) } : { span: span.span });
      history.pushState(null, "", `?${given}${location.hash}`);
    }
    await this.load();
  }

  async load() {
    this.asked?.abort();
    this.asked = new AbortController();
    this.early = [];
    const [since, until] = this.ends();
    const told = this.span.since ? until : Math.min(until, Date.now() / 1000 + LATE_S);
    const buckets = Math.min(Math.max(Math.round(this.place.clientWidth || 600), LEAST_BUCKETS), MOST_BUCKETS);
    const given = new URLSearchParams({ since: since.toFixed(3), until: told.toFixed(3), buckets });
    const path = `/api/device/${this.settings.board}/chart?${given}`;
    const trouble = document.getElementById("chart-trouble");
    this.place.setAttribute("aria-busy", "true");
    performance.mark("chart-asked");
    let data;
    try {
      data = await request(path, { signal: this.asked.signal });
    } catch (error) {
      if (error.name === "AbortError") return;
      this.asked = null;
      this.early = [];
      trouble.hidden = false;
      trouble.textContent = fill(this.words.failed, { what: error.message });
      this.place.setAttribute("aria-busy", "false");
      this.describe();
      return;
    }
    trouble.hidden = true;
    performance.mark("chart-came");
    data.marks = data.marks.map((mark, at) => ({ ...mark, number: at + 1, look: lookOf(mark) }));
    await this.charts.set({ ...data, since, until });
    performance.mark("chart-drawn");
    performance.measure("chart", "chart-asked", "chart-drawn");
    this.asked = null;
    this.place.setAttribute("aria-busy", "false");
    document.getElementById("chart-csv").href = `${path}&format=csv`;
    for (const told of this.early) this.append(...told);
    this.early = [];
    this.describe();
    this.held = Object.assign({}, ...data.marks.filter((mark) => mark.kind === "decision").map((mark) => mark.values));
    this.list(this.charts.data);
  }

  /** What the board just told. */
  append(group, values, ts) {
    if (this.asked) this.early = [...this.early, [group, values, ts]].slice(-MOST_EARLY);
    else if (!this.span.since) {
      if (group === "board") this.decided(values, ts);
      this.charts.append(ts, group, values, ...this.ends());
    }
    if (this.charts.data.ts.length > MOST_POINTS && !this.asked) this.load();
  }

  /** The governor may have decided anew. */
  decided(values, ts) {
    const told = DECISIONS.filter((key) => typeof values[key] === "string" && values[key] !== this.held?.[key]);
    if (!this.held || !told.length) return;
    const shown = ["action", "rule", ...told].filter((key) => typeof values[key] === "string");
    this.mark({ ts, kind: "decision", values: Object.fromEntries(shown.map((key) => [key, plain(values[key], 64)])) });
    for (const key of told) this.held[key] = values[key];
  }

  /** An alarm came, or went (`body` is null). */
  alarm(type, body) {
    if (this.asked || this.span.since || !this.held) return;
    const ts = typeof body?.since === "number" ? body.since : Date.now() / 1000, alarm = plain(type, 64);
    const same = (mark) => mark.values.alarm === alarm && mark.kind === "raised" && Math.abs(mark.ts - ts) < SAME_ALARM_S;
    const [since, until] = this.ends();
    if (ts < since || ts > until || (body && this.charts.data.marks.some(same))) return;
    this.mark({ ts, kind: body ? "raised" : "cleared", values: { alarm } });
  }

  mark(mark) {
    const { data } = this.charts;
    data.marks = [...data.marks, { ...mark, number: (data.marks.at(-1)?.number ?? 0) + 1, look: lookOf(mark) }].slice(-MOST_MARKS);
    this.charts.slide(...this.ends());
    this.list(data);
  }

  /** A span that ends now moves on, and what came live is asked for in buckets from time to time. */
  renew() {
    if (!this.span.since && !this.asked && !document.hidden) this.load();
  }

  describe() {
    const [since, until] = this.ends();
    const live = !this.span.since;
    document.getElementById("span-live").hidden = !live;
    document.getElementById("span-words").textContent = live ? "" : `${moment(since, "second")} – ${moment(until, "second")}`;
    for (const button of this.tools.querySelectorAll("[data-span]")) {
      button.setAttribute("aria-pressed", String(live && Number(button.dataset.span) === this.span.span));
    }
    this.tools.querySelector('[data-move="later"]').disabled = live;
    const local = (ts) => new Date((ts - new Date(ts * 1000).getTimezoneOffset() * 60) * 1000).toISOString().slice(0, 19);
    document.getElementById("span-since").value = local(since);
    document.getElementById("span-until").value = local(live ? Date.now() / 1000 : until);
  }

  chosen(event) {
    event.preventDefault();
    const [since, until] = ["span-since", "span-until"].map((id) => new Date(document.getElementById(id).value) / 1000);
    if (!(until - since >= LEAST_SPAN) || until - since > MOST_SPAN) return document.getElementById("span-until").focus();
    this.tools.querySelector(".custom-span").open = false;
    this.show({ since, until });
  }

  clicked(event) {
    const button = event.target.closest("button[data-span], button[data-move]");
    if (!button) return;
    if (button.dataset.span) return this.show({ span: Number(button.dataset.span) });
    if (button.dataset.move === "reset") return this.show({ span: this.settings.span });
    const now = Date.now() / 1000;
    const [since, end] = this.ends();
    const until = Math.min(end, now), wide = until - since, middle = (since + until) / 2;
    const [from, to] = {
      earlier: [since - wide / 2, until - wide / 2],
      later: [since + wide / 2, until + wide / 2],
      in: [middle - wide / 4, middle + wide / 4],
      out: [middle - wide, middle + wide],
    }[button.dataset.move];
    const most = Math.max(LEAST_SPAN, Math.min(to - from, MOST_SPAN));
    this.show(to >= now ? { span: most } : { since: to - most, until: to });
  }

  /** The marks as a table: what the lines in the charts say, for everybody. */
  list(data) {
    const { words, rules, actions, alarms } = this.settings;
    const rule = (name) => rules[name] ?? name;
    const rows = data.marks.slice(-SHOWN_MARKS).reverse().map((mark) => {
      const { action = "", rule: named = "", alarm = "", ...more } = mark.values;
      const decision = mark.kind === "decision";
      const also = Object.entries(more).map(([key, value]) => (words[key] ? fill(words[key], { rule: rule(value) }) : value));
      const button = element("button", { type: "button", class: `mark-button mark-${mark.look}`, title: words.point }, `${decision ? "" : "▲"}${mark.number}`);
      button.addEventListener("click", () => this.point(mark, button.closest("tr")));
      return element("tr", {},
        element("td", {}, button),
        element("th", { scope: "row" }, timeElement(mark.ts, "second")),
        element("td", {}, decision ? actions[action] ?? action : words[mark.kind] ?? mark.kind),
        element("td", {}, decision ? rule(named) : alarms[alarm] ?? alarm),
        element("td", { class: "quiet" }, decision ? also.join(", ") : ""));
    });
    document.getElementById("marks-rows").replaceChildren(...rows);
    const count = data.marks.length;
    const text = count ? fill(data.marks_cut ? words.marks_cut : words.marks, { count }) : words.no_marks;
    document.getElementById("marks-count").textContent = text;
  }

  point(mark, row) {
    for (const other of row.parentElement.children) other.classList.toggle("is-chosen", other === row);
    this.charts.choose(mark.ts);
    announce(moment(mark.ts, "second"));
  }
}
