// What changes, as it changes: one stream for each query, its state in #connection, and the way back after a loss.

import { dataOf, element, fill, moment } from "./base.js";
import { onWanted, takePlace } from "./live_places.js";

const FIRST_MS = 1000, LONGEST_MS = 30000; // between two tries; doubled each time, a random half taken away
const SILENT_MS = 40000; // the server says something each 15 s: after two that did not come the line is dead
const BRIEF_MS = 1500; // a stream that is made anew, as another filter asks for it, is not worth a word
const HIDDEN_MS = 20000; // a page that nobody sees gives its place up, at once if another page wants it
const CROWDED_MS = 10000; // between two tries of a page that found no place; its parts are asked for as often
const TEXTS = dataOf("live-texts") || {};
const EVENTS = ["hello", "link", "rows", "status", "metrics", "alarm", "conn", "birth", "roll-out"];
const streams = new Map();
const ORDER = ["ended", "lost", "paused", "crowded", "connecting", "no-broker", "connected"]; // the first that holds is shown
const PATIENCE_MS = 1000; // a new list of boards is another stream: made within this it is no news
let hiding = 0, patience = 0;
let leave = null, entering = false; // the place that this page holds

/** One EventSource after the other; whoever asked for the same query shares it. */
class Stream {
  constructor(query) {
    Object.assign(this, { query, listeners: new Set(), source: null, after: "", tries: 0, timer: 0, watch: 0, since: null, broker: true });
    this.state = "connecting";
  }

  open() {
    this.shut();
    this.show(this.since === null ? "connecting" : "lost");
    if (!leave) {
      enter();
      return;
    }
    const asked = new URLSearchParams(this.query);
    if (this.after) asked.set("after", this.after);
    const source = (this.source = new EventSource(`/live?${asked}`));
    for (const name of EVENTS) source.addEventListener(name, (event) => this.take(name, event));
    source.addEventListener("beat", () => this.heard());
    source.addEventListener("ended", () => this.end());
    source.addEventListener("error", () => this.lose(source));
    this.heard();
  }

  take(name, event) {
    this.heard();
    if (event.lastEventId) this.after = event.lastEventId;
    const data = JSON.parse(event.data);
    if (name === "hello" || name === "link") {
      this.broker = data.connected;
      if (name === "hello") Object.assign(this, { tries: 0, since: null });
      this.show(this.broker ? "connected" : "no-broker");
    }
    for (const takers of this.listeners) takers[name]?.(data);
  }

  heard() {
    clearTimeout(this.watch);
    this.watch = setTimeout(() => this.lose(this.source), SILENT_MS);
  }

  async lose(source) {
    if (source !== this.source || source === null) return;
    const answered = source.readyState === EventSource.CLOSED; // by something that is no stream
    this.shut();
    this.since ??= Date.now() / 1000;
    this.show("lost");
    const wait = Math.min(LONGEST_MS, FIRST_MS * 2 ** this.tries);
    this.tries += 1;
    this.timer = setTimeout(() => this.open(), wait * (0.5 + Math.random() / 2));
    if (answered && (await loggedOut())) this.end();
  }

  end() {
    this.shut();
    this.show("ended");
    giveUp();
  }

  /** No place: what is shown is asked for from time to time. */
  crowd() {
    this.shut();
    this.show("crowded");
    this.timer = setTimeout(() => {
      for (const takers of this.listeners) takers.crowded?.();
      this.open();
    }, CROWDED_MS);
  }

  shut() {
    clearTimeout(this.timer);
    clearTimeout(this.watch);
    this.source?.close();
    this.source = null;
  }

  show(state) {
    this.state = state;
    showConnection();
  }
}

/** Find a place, then open what waits for it. */
async function enter() {
  if (entering) return;
  entering = true;
  const found = await takePlace();
  entering = false;
  const waiting = [...streams.values()].filter((stream) => !["paused", "ended"].includes(stream.state));
  if (!waiting.length) {
    found?.();
    return;
  }
  leave = found;
  for (const stream of waiting) {
    if (leave) stream.open();
    else stream.crowd();
  }
}

function giveUp() {
  leave?.();
  leave = null;
}

/** The session has ended, as another answer told: nothing is tried any more. */
export function endAll() {
  for (const stream of streams.values()) stream.end();
}

async function loggedOut() {
  try {
    const answer = await fetch("/api/fleet?rows=1", { redirect: "manual", headers: { Accept: "application/json" } });
    return answer.status === 401 || answer.type === "opaqueredirect";
  } catch {
    return false; // nobody answers: that is a lost connection
  }
}

function showConnection(waited = false) {
  const place = document.getElementById("connection"), all = [...streams.values()];
  const state = ORDER.find((name) => all.some((stream) => stream.state === name));
  clearTimeout(patience);
  if (!place || !state) return;
  if (state === "connecting" && place.dataset.state === "connected" && !waited) {
    patience = setTimeout(() => showConnection(true), PATIENCE_MS);
    return;
  }
  const since = Math.min(...all.map((stream) => stream.since ?? Infinity));
  const day = Number.isFinite(since) && Date.now() / 1000 - since > 86400 / 2;
  const time = Number.isFinite(since) ? new Date(since * 1000).toLocaleTimeString(document.documentElement.lang || "en") : "";
  const text = fill(TEXTS[state] || state, { time: day ? moment(since, "minute") : time });
  place.dataset.state = state;
  const words = place.querySelector(".words") || place;
  if (words.textContent === text) return;
  const back = `/login?next=${encodeURIComponent(location.pathname + location.search)}`;
  words.replaceChildren(state === "ended" ? element("a", { href: back }, text) : text);
}

/** Listen to what changes.
 *
 * `query`: as of /live, a text or an object, such as `{ board: "pi-1" }`. `takers`: by the name of an event a function
 * of its data; `hello` comes with each connection, so also after one was lost. `crowded` is called from time to time while
 * other windows have all places: the page asks for what it shows. The answer's `close()` ends it.
 */
export function connect(query, takers) {
  const key = new URLSearchParams(query).toString();
  let stream = streams.get(key);
  if (!stream) {
    stream = new Stream(key);
    streams.set(key, stream);
    if (!document.hidden) stream.open();
    else stream.show("paused");
  } else if (stream.state === "connected" || stream.state === "no-broker") {
    stream.after = ""; // who comes later is told all
    stream.open();
  }
  stream.listeners.add(takers);
  return {
    close() {
      stream.listeners.delete(takers);
      if (stream.listeners.size || streams.get(key) !== stream) return;
      stream.shut();
      streams.delete(key);
      showConnection();
    },
  };
}

function pause() {
  for (const stream of streams.values()) {
    if (stream.state === "ended") continue;
    stream.shut();
    stream.show("paused");
  }
  giveUp();
}

function resume() {
  clearTimeout(hiding);
  for (const stream of streams.values()) if (stream.state === "paused") stream.open();
}

document.addEventListener("visibilitychange", () => {
  clearTimeout(hiding);
  if (document.hidden) hiding = setTimeout(pause, HIDDEN_MS);
  else resume();
});
onWanted(() => {
  if (document.hidden) pause();
});
window.addEventListener("pagehide", pause);
window.addEventListener("pageshow", (event) => {
  if (event.persisted) resume();
});
window.addEventListener("online", () => {
  for (const stream of streams.values()) if (stream.state === "lost") stream.open();
});
