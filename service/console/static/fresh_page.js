// A page of ours as the server writes it now, for the parts of it that changed.

import { endAll } from "/static/live.js";

/** The document at a path of ours, or `null` where there is none at the moment. Whoever is logged out is told so.
 *
 * What comes is the server's own HTML, in which all that boards and people wrote is escaped; no part of it is run.
 */
export async function freshPage(path) {
  let answer, text;
  try {
    answer = await fetch(path, { credentials: "same-origin", headers: { Accept: "text/html" } });
    text = await answer.text();
  } catch {
    return null; // live.js says that the connection is lost; the next event asks again
  }
  if (answer.status === 401 || (answer.redirected && new URL(answer.url).pathname === "/login")) endAll();
  return answer.ok && !answer.redirected ? new DOMParser().parseFromString(text, "text/html") : null;
}
