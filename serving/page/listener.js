// Who listens: a user of the log, or one made up of picked tracks; and what they heard.

import {call, showProblem} from "./api.js";
import {byId, element, onTyping, trackButton, trackText} from "./elements.js";
import {play} from "./player.js";
import {showTrack} from "./ids.js";

const users = byId("users");
const foundTracks = byId("found-tracks");
const history = byId("history");
const note = byId("history-note");

// {user_id} or {history: [tracks, oldest first]}; null before anyone was chosen.
export let listener = null;
let changed = () => {};
let asked = 0;  // of several requests under way, the answer of the last one counts

export async function start(onChange) {
  changed = onChange;
  byId("choose-known").addEventListener("click", () => choose(true));
  byId("choose-made-up").addEventListener("click", () => choose(false));
  onTyping(byId("user-search"), (digits) => findUsers(digits).catch(showProblem));
  onTyping(byId("track-search"), (text) => findTracks(text).catch(showProblem));
  await findUsers("");
}

function choose(known) {
  byId("choose-known").setAttribute("aria-pressed", known);
  byId("choose-made-up").setAttribute("aria-pressed", !known);
  byId("known").hidden = !known;
  byId("made-up").hidden = known;
  byId(known ? "user-search" : "track-search").focus();
  listen(known ? null : {history: []}).catch(showProblem);
}

// `about`: what made the listener change, for the ranking to say.
async function listen(next, about) {
  listener = next;
  showHistory();
  await changed(about);
}

async function findUsers(digits) {
  if (!/^-?[0-9]{0,19}$/.test(digits)) throw new Error("A user id is a whole number.");
  const mine = ++asked;
  const found = await call(`v1/browse/users?digits=${digits}`);
  if (mine !== asked) return;
  const choices = found.map((user) => userChoice(user.user_id, user.last_active.slice(0, 10)));
  // A user who came after the log was written is in the online store only.
  if (/[0-9]/.test(digits) && !found.some((user) => String(user.user_id) === digits)) {
    choices.push(userChoice(digits, "not in the log"));
  }
  users.replaceChildren(...choices);
}

function userChoice(userId, about) {
  const choose = () => listen({user_id: userId}).catch(showProblem);
  const button = element("button", {onclick: choose}, element("strong", {text: `User ${userId}`}));
  button.append(element("span", {class: "quiet", text: about}));
  return element("li", {}, button);
}

async function findTracks(text) {
  const mine = ++asked;
  const found = text ? await call(`v1/browse/search?text=${encodeURIComponent(text)}`) : [];
  if (mine !== asked) return;
  const choices = found.map((track) => {
    const button = element("button", {onclick: () => heard(track).catch(showProblem)});
    button.append(trackText(track));
    return element("li", {}, button);
  });
  if (text && !found.length) choices.push(element("li", {class: "quiet", text: "No such track."}));
  foundTracks.replaceChildren(...choices);
}

// The listener heard a track: a made-up one only here, a user of the log on the server.
export async function heard(track, about) {
  if (!listener.history) return listen(listener, about);
  return listen({history: [...listener.history, track]}, about);
}

async function showHistory() {
  const shown = listener;
  if (!shown) {
    note.textContent = "Choose a user.";
    return history.replaceChildren();
  }
  if (shown.history) {
    const empty = "Pick a track, or favour one of the ranking.";
    note.textContent = shown.history.length ? "Made up, newest first." : empty;
    const items = shown.history.map((track, place) => historyItem({track}, () => drop(place)));
    return history.replaceChildren(...items.reverse());
  }
  try {
    const {listens} = await call(`v1/browse/users/${shown.user_id}`);
    if (listener !== shown) return;
    const known = `User ${shown.user_id}, newest first.`;
    note.textContent = listens.length ? known : `Nothing is known of user ${shown.user_id}.`;
    history.replaceChildren(...listens.map((listen) => historyItem(listen)));
  } catch (error) {
    showProblem(error);
  }
}

function drop(place) {
  byId("track-search").focus();  // the button that was pressed goes
  listen({history: listener.history.filter((_, other) => other !== place)}).catch(showProblem);
}

function historyItem({track, listened_at, action}, remove) {
  const item = element("li", {}, trackText(track));
  if (action) {
    const when = new Date(listened_at).toLocaleString();
    item.append(element("span", {class: "quiet", text: `${action}, ${when}`}));
  }
  const buttons = element("div", {class: "row"});
  if (track.playable) {
    buttons.append(trackButton("Hear", track, () => play(track).catch(showProblem)));
  }
  buttons.append(trackButton("IDs", track, () => showTrack(track.track_id).catch(showProblem)));
  if (remove) buttons.append(trackButton("Remove", track, remove));
  item.append(buttons);
  return item;
}
