// Makes elements. Text from the catalogue gets into the page here only, and as text.

export const byId = (id) => document.getElementById(id);

// element("button", {class: "why", text: "Why", "aria-expanded": "false", onclick: f}, child, ...)
export function element(tag, {text, onclick, ...attributes} = {}, ...children) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (onclick) made.addEventListener("click", onclick);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

export const titleOf = (track) => track.title ?? `Track ${track.track_id}`;

// Title, artist and tags of a track, as every list of the page shows them.
export function trackText(track) {
  const text = element("div", {class: "track-text"}, element("strong", {text: titleOf(track)}));
  if (track.artist) text.append(element("span", {class: "artist", text: track.artist}));
  if (track.tags.length) {
    text.append(element("span", {class: "tags", text: track.tags.slice(0, 4).join(", ")}));
  }
  return text;
}

// A button whose name says of which track it is, for those who hear the page.
export function trackButton(label, track, onclick) {
  return element("button", {text: label, "aria-label": `${label}: ${titleOf(track)}`, onclick});
}

// Runs `search` a moment after the last key, and not once more for an older text.
export function onTyping(input, search) {
  let waiting;
  input.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => search(input.value.trim()), 150);
  });
}
