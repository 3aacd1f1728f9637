// Parts of a page that the server writes anew: marked by data-live, put in place where they changed.

import { writeTimes } from "/static/base.js";
import { freshPage } from "/static/fresh_page.js";

const REST_MS = 1500; // between two askings: a board may say a hundred things in a second

export class Fresh {
  /** `placed` is called after parts were put in place. */
  constructor(path, placed = () => {}) {
    this.path = path;
    this.placed = placed;
    this.waiting = null;
    this.last = -Infinity;
    this.shown = new Map();
  }

  /** Something changed: ask at once, or as soon as the last asking is long enough ago. */
  ask() {
    if (this.waiting !== null) return;
    const rest = Math.max(0, this.last + REST_MS - performance.now());
    this.waiting = setTimeout(() => this.load(), rest);
  }

  async load() {
    this.last = Infinity; // until the answer is here nothing is asked
    try {
      const page = await freshPage(this.path);
      if (page) this.place(page);
    } finally {
      this.last = performance.now();
      this.waiting = null;
    }
  }

  place(page) {
    for (const made of page.querySelectorAll("[data-live]")) {
      const name = made.dataset.live;
      const kept = document.querySelector(`[data-live="${CSS.escape(name)}"]`);
      if (!kept || this.shown.get(name) === made.outerHTML) continue;
      const focused = kept.contains(document.activeElement) ? document.activeElement.id : "";
      const node = document.importNode(made, true);
      for (const open of kept.querySelectorAll("details[id]")) {
        const same = node.querySelector(`#${CSS.escape(open.id)}`);
        if (same) same.open = open.open;
      }
      if (kept.contains(document.activeElement) && !focused) continue; // somebody is in the midst of it
      kept.replaceWith(node);
      this.shown.set(name, made.outerHTML);
      writeTimes(node);
      if (focused) document.getElementById(focused)?.focus({ preventScroll: true });
    }
    this.placed();
  }
}
