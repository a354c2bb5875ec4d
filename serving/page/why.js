// Why a track: what each listen of the history has to do with its score.

import {call} from "./api.js";
import {element, titleOf} from "./elements.js";

const MOST = 200;  // listens that the server takes; no model looks back on more
const ATTENTION = {
  sim: "any number; 0 for a listen that its search left out",
  transformer: "a share in each block; what is left of 1 the candidate gives itself",
};

// A table, one row a listen and one column an attention net.
export async function whyTable(track, listener) {
  if (listener.history?.length === 0) return nothingKnown();
  const who = listener.history
    ? listener.history.slice(-MOST).map((listen) => `history=${listen.track_id}`).join("&")
    : `user_id=${listener.user_id}`;
  const why = await call(`v1/explain?track_id=${track.track_id}&${who}`);
  if (!why.listens.length) return nothingKnown();
  const box = element("div", {});
  const says = why.attention.length
    ? `Attention: how much the model looks at a listen; ${
      ATTENTION[why.model] ?? "any number, they do not add up to 1"}.`
    : `A ${why.model} model has no attention over the history.`;
  const change = "Change: what the score would lose without the listen.";
  box.append(element("p", {class: "quiet", text: `${says} ${change}`}));
  const titles = ["Listen, newest first", ...why.attention, "change", "codes shared"];
  const head = element("tr", {}, ...titles.map((text) => element("th", {scope: "col", text})));
  const largest = largestOf(why);
  const rows = why.listens.map((listen) => listenRow(listen, why.attention, largest));
  const caption = element("caption", {text: `Why ${titleOf(why.track)}: ${why.score.toFixed(3)}`});
  const table = element("table", {}, caption, element("thead", {}, head),
    element("tbody", {}, ...rows));
  // Wider than a phone: it scrolls by itself, with the keyboard too.
  box.append(element("div", {
    class: "scrolls", tabindex: 0, role: "region", "aria-label": `Why ${titleOf(why.track)}`,
  }, table));
  return box;
}

function nothingKnown() {
  return element("p", {text: "No listen is known: the score is the same for everyone new."});
}

// The largest size in each column, which has the full colour.
function largestOf(why) {
  const largest = {change: Math.max(...why.listens.map((listen) => Math.abs(listen.change)))};
  for (const name of why.attention) {
    largest[name] = Math.max(...why.listens.map((listen) => Math.abs(listen.weights[name])));
  }
  return largest;
}

function listenRow(listen, attention, largest) {
  const shared = Object.entries(listen.shared).filter(([, codes]) => codes);
  return element("tr", {},
    element("th", {scope: "row", text: titleOf(listen.track)}),
    ...attention.map((name) => heat(listen.weights[name], largest[name])),
    heat(listen.change, largest.change),
    element("td", {text: shared.map(([family, codes]) => `${family} ${codes}`).join(", ") || "-"}),
  );
}

function heat(value, largest) {
  const cell = element("td", {class: `heat ${value < 0 ? "minus" : "plus"}`});
  cell.textContent = value.toFixed(3).replace(/^-(0\.0+)$/, "$1");
  cell.style.setProperty("--share", largest ? Math.abs(value) / largest : 0);
  return cell;
}
