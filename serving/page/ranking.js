// The ranked list: scores, where each track came from, feedback, and what it changed.

import {call, idNumber, showProblem} from "./api.js";
import {byId, element, titleOf, trackButton, trackText} from "./elements.js";
import {heard, listener} from "./listener.js";
import {play} from "./player.js";
import {showTrack} from "./ids.js";
import {whyTable} from "./why.js";

const COUNT = 20;
const NOBODY = "Choose a listener, or make one up.";
const ranked = byId("ranked");
const note = byId("ranking-note");
const DEGRADED = {
  user_unavailable: "the listener's history could not be read",
  user_stale: "the listener's history is old",
  fewer_candidates: "fewer candidates were looked at",
  popularity: "ordered by popularity: no score came in time",
};

let places = new Map();  // of the ranking before, by track id
let of = null;  // whose ranking it was
let asked = 0;

export function start() {
  for (const id of ["include-seen", "max-per-artist", "max-per-prefix"]) {
    byId(id).addEventListener("change", () => rank().catch(showProblem));
  }
}

function request() {
  const asks = {count: COUNT, include_seen: byId("include-seen").checked};
  for (const name of ["max_per_artist", "max_per_prefix"]) {
    const chosen = byId(name.replaceAll("_", "-")).value;
    if (chosen) asks[name] = Number(chosen);
  }
  if (!listener.history) return {...asks, user_id: idNumber(listener.user_id)};
  return {...asks, history: listener.history.map((track) => idNumber(track.track_id))};
}

// Asks for the ranking and shows it; `about`: what led to it, said before its result.
export async function rank(about = "") {
  const mine = ++asked;
  if (!listener) {
    places = new Map();
    note.textContent = NOBODY;
    return ranked.replaceChildren();
  }
  const started = performance.now();
  const answer = await call("v1/recommend", request());
  const tracks = await named(answer.results.map((result) => result.track_id));
  if (mine !== asked) return;
  const milliseconds = Math.round(performance.now() - started);
  const who = listener.history ? "made up" : String(listener.user_id);
  const before = who === of ? places : new Map();
  of = who;
  places = new Map(answer.results.map((result, place) => [String(result.track_id), place]));
  const goBack = focusKept();
  ranked.replaceChildren(...answer.results.map((result, place) =>
    row(result, tracks[place], place, before)));
  goBack();
  const said = [about, `${answer.results.length} tracks in ${milliseconds} ms.`];
  if (answer.missing.user && !answer.degraded.includes("user_unavailable")) {
    said.push("Nothing is known of this listener: not personal.");
  }
  for (const reason of answer.degraded) said.push(`Degraded: ${DEGRADED[reason] ?? reason}.`);
  note.textContent = said.filter(Boolean).join(" ");
}

// New rows take the old ones' places: the keyboard stays at the same place and button.
function focusKept() {
  const row = document.activeElement?.closest("#ranked > li");
  if (!row) return () => {};
  const place = [...ranked.children].indexOf(row);
  const button = [...row.querySelectorAll("button")].indexOf(document.activeElement);
  return () => {
    const next = ranked.children[place]?.querySelectorAll("button")[button];
    (next ?? byId("ranking")).focus();
  };
}

async function named(ids) {
  if (!ids.length) return [];
  return call(`v1/browse/tracks?${ids.map((id) => `ids=${id}`).join("&")}`);
}

function row(result, track, place, before) {
  const item = element("li", {"data-track": track.track_id});
  const movement = moved(track, place, before);
  const about = element("div", {class: "row"}, ...scoreOf(result), movement);
  for (const source of result.sources) about.append(element("span", {class: "chip", text: source}));
  const why = element("div", {class: "why", hidden: ""});
  const whyButton = trackButton("Why", track, () => toggle(whyButton, why, track));
  whyButton.setAttribute("aria-expanded", "false");
  item.append(trackText(track), about, element("div", {class: "row"},
    trackButton("Play", track, () => feedback(track, "play")),
    trackButton("Skip", track, () => feedback(track, "skip")),
    trackButton("Favourite", track, () => feedback(track, "favourite")),
    whyButton,
    trackButton("IDs", track, () => showTrack(track.track_id).catch(showProblem)),
  ), why);
  return item;
}

// Under load the last tracks have no score.
function scoreOf({score}) {
  if (score === null) return [element("span", {class: "quiet", text: "not scored"})];
  return [
    element("meter", {min: 0, max: 1, value: score, "aria-hidden": "true"}),
    element("span", {class: "score", text: score.toFixed(3)}),
  ];
}

// How many places the track rose or fell since the ranking before, of the same listener.
function moved(track, place, before) {
  if (!before.size) return "";
  const earlier = before.get(String(track.track_id));
  if (earlier === undefined) return element("span", {class: "up", text: "new"});
  const rose = earlier - place;
  if (!rose) return "";
  const [kind, sign] = rose > 0 ? ["up", "\u25b2"] : ["down", "\u25bc"];
  const text = `${sign} ${Math.abs(rose)}`;
  return element("span", {class: kind, text, "aria-label": `${kind} ${Math.abs(rose)}`});
}

async function toggle(button, panel, track) {
  const opens = panel.hidden;
  button.setAttribute("aria-expanded", opens);
  panel.hidden = !opens;
  if (!opens) return;
  panel.textContent = "...";
  try {
    panel.replaceChildren(await whyTable(track, listener));
  } catch (error) {
    panel.textContent = error.message;
  }
}

async function feedback(track, action) {
  try {
    // The sound begins whatever becomes of the event.
    if (action === "play" && track.playable) play(track).catch(showProblem);
    const about = listener.history ? "Noted in this page only." : await report(track, action);
    if (action === "skip") {
      note.textContent = `${about} A skip enters no history, so the ranking stays.`;
      return;
    }
    await heard(track, `${titleOf(track)}: ${action}. ${about}`);
  } catch (error) {
    showProblem(error);
  }
}

async function report(track, action) {
  const event = {
    // 52 random bits above 2^52: exact as a number, and no other event's.
    event_id: 2 ** 52 + Number(crypto.getRandomValues(new BigUint64Array(1))[0] >> 12n),
    user_id: idNumber(listener.user_id),
    track_id: idNumber(track.track_id),
    event_timestamp: new Date().toISOString(),
    action,
  };
  const answer = await call("v1/events", {events: [event]});
  const {status, reason} = answer.events[0];
  if (status === "rejected") throw new Error(`The event was rejected: ${reason}.`);
  return status === "pending" ? "Kept; online as soon as the store answers." : "Taken.";
}
