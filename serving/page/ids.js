// The tree of semantic IDs: a code and its tracks, a track and its neighbours.

import {call, showProblem} from "./api.js";
import {byId, element, titleOf, trackButton, trackText} from "./elements.js";
import {play} from "./player.js";

const section = byId("ids");
const content = byId("ids-content");
const note = byId("ids-note");
const families = byId("families");
const path = byId("prefix");
let asked = 0;

export async function start(names) {
  families.replaceChildren(...names.map((name) =>
    element("button", {text: name, "aria-pressed": "false", onclick: () => open(name, [])})));
  await showPrefix(names.at(-1), []);
}

// What was pressed may be gone: the keyboard goes on from the prefix that is shown.
async function open(family, prefix) {
  try {
    await showPrefix(family, prefix);
    path.lastChild.focus();
  } catch (error) {
    showProblem(error);
  }
}

async function showPrefix(family, prefix) {
  const mine = ++asked;
  const query = prefix.map((code) => `prefix=${code}`).join("&");
  const answer = await call(`v1/browse/codes/${encodeURIComponent(family)}?${query}`);
  if (mine !== asked) return;
  press(family);
  showPath(family, prefix);
  const tags = answer.tags.length ? `: ${answer.tags.join(", ")}` : "";
  note.textContent = `${answer.found} tracks under ${[family, ...prefix].join(" ")}${tags}`;
  const children = answer.children.map((child) => childButton(child, family, prefix));
  content.replaceChildren();
  if (children.length) {
    const label = `Codes of level ${prefix.length + 1}`;
    content.append(element("ul", {class: "codes", "aria-label": label}, ...children));
  }
  // At the root, the tracks would be the whole catalogue.
  if (prefix.length) content.append(trackList(answer.tracks, answer.found));
}

function childButton({code, tracks, tags}, family, prefix) {
  const button = element("button", {onclick: () => open(family, [...prefix, code])},
    element("strong", {text: code}),
    element("span", {text: `${tracks} ${tracks === 1 ? "track" : "tracks"}`}));
  if (tags.length) button.append(element("span", {class: "tags", text: tags.join(", ")}));
  return element("li", {}, button);
}

function press(family) {
  for (const button of families.children) {
    button.setAttribute("aria-pressed", button.textContent === family);
  }
}

// The way back: a button for every shorter prefix.
function showPath(family, prefix) {
  const steps = [family, ...prefix].map((text, depth) => {
    const here = depth === prefix.length;
    const step = element("button", {text, onclick: () => open(family, prefix.slice(0, depth))});
    if (here) step.setAttribute("aria-current", "true");
    return step;
  });
  path.replaceChildren(...steps.flatMap((step, depth) => (depth ? ["/", step] : [step])));
}

function trackList(tracks, found) {
  const box = element("div", {class: "under"});
  box.append(element("ul", {class: "tracks"}, ...tracks.map((track) => trackItem(track))));
  if (found > tracks.length) {
    box.append(element("p", {class: "quiet", text: `and ${found - tracks.length} more`}));
  }
  return box;
}

function trackItem(track, about = "") {
  const buttons = element("div", {class: "row"});
  if (about) buttons.append(element("span", {class: "chip", text: about}));
  if (track.playable) {
    buttons.append(trackButton("Hear", track, () => play(track).catch(showProblem)));
  }
  buttons.append(trackButton("IDs", track, () => showTrack(track.track_id).catch(showProblem)));
  return element("li", {}, trackText(track), buttons);
}

// A track's IDs, and in each family the tracks whose ID begins as its own does.
export async function showTrack(trackId) {
  const mine = ++asked;
  const answer = await call(`v1/browse/tracks/${trackId}`);
  if (mine !== asked) return;
  press(null);
  path.replaceChildren();
  note.textContent = `The IDs of ${titleOf(answer.track)}, and its nearest tracks by them`;
  content.replaceChildren(trackText(answer.track),
    element("div", {class: "families"}, ...answer.ids.map(familyBox)));
  section.scrollIntoView();
  section.focus({preventScroll: true});
}

function familyBox({family, codes, neighbours}) {
  const box = element("section", {}, element("h3", {text: family}));
  if (!codes.length) {
    box.append(element("p", {class: "quiet", text: "The track has no ID in this family."}));
    return box;
  }
  const steps = codes.map((code, depth) => element("button", {
    text: code,
    "aria-label": `${family} ${codes.slice(0, depth + 1).join(" ")}`,
    onclick: () => open(family, codes.slice(0, depth + 1)),
  }));
  box.append(element("div", {class: "row"}, ...steps));
  const items = neighbours.map(({track, shared}) =>
    trackItem(track, `${shared} of ${codes.length} codes shared`));
  box.append(items.length
    ? element("ul", {class: "tracks"}, ...items)
    : element("p", {class: "quiet", text: "No other track shares its first code."}));
  return box;
}
