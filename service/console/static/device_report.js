// The page of a board's report: it is loaded anew when the report that was asked for has come.

import { connect } from "/static/live.js";

const place = document.getElementById("report");
const ENDED = ["succeeded", "failed", "rejected", "timed_out", "canceled", "rolled_back"];

if (place.dataset.open) {
  connect({ board: place.dataset.board }, {
    crowded: () => location.reload(),
    status: ({ id, body }) => {
      if (id === place.dataset.asked && ENDED.includes(body?.status)) location.reload();
    },
  });
}
