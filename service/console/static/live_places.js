// Browsers open six connections to a server of HTTP/1.1, over all their windows. A stream holds one for good: pages share
// a few places for streams, so that pages still load however many windows are open.

const PLACES = 4; // of six: two are left for pages and what they ask for
const MOMENT_MS = 300; // until pages that nobody sees have left
const channel = "BroadcastChannel" in globalThis ? new BroadcastChannel("temperd-live") : null;

/** A place among the pages of this browser: a function that gives it back, or `null` where all are taken.
 *
 * Without a secure context (another machine's console without TLS) browsers have no locks: then nothing is counted.
 */
export async function takePlace() {
  if (!navigator.locks) return () => {};
  const found = await firstFree();
  if (found || !channel) return found;
  channel.postMessage("wanted");
  await new Promise((resolve) => setTimeout(resolve, MOMENT_MS));
  return firstFree();
}

/** Call `leave` when another page wants a place: who is not seen goes first. */
export function onWanted(leave) {
  channel?.addEventListener("message", leave);
}

async function firstFree() {
  for (let number = 0; number < PLACES; number += 1) {
    const found = await attempt(`temperd-live-${number}`);
    if (found) return found;
  }
  return null;
}

function attempt(name) {
  return new Promise((resolve) => {
    const held = navigator.locks.request(name, { ifAvailable: true }, (lock) => (lock ? new Promise(resolve) : resolve(null)));
    held.catch(() => resolve(() => {})); // a browser that keeps no locks for this page
  });
}
