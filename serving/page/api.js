// Calls to the server: JSON in and out, the token, and what went wrong in words.
//
// Ids are 64-bit integers, of which JavaScript's numbers hold 53 bits: an id beyond them is kept as
// its digits from the answer to the next request.

import {byId} from "./elements.js";

const TOKEN = "crescendo-token";
const problem = byId("problem");
const tokenForm = byId("token-form");
const tokenField = byId("token");
const waiting = [];  // what asks again when a token is given

function keepDigits(key, value, context) {
  if (typeof value !== "number" || !Number.isInteger(value) || Number.isSafeInteger(value)) {
    return value;
  }
  if (!context) throw new Error("ids of this server need a newer browser");
  return context.source;
}

// An id as it stands in a request's body.
export function idNumber(id) {
  if (Number.isSafeInteger(Number(id))) return Number(id);
  if (!JSON.rawJSON) throw new Error("ids of this server need a newer browser");
  return JSON.rawJSON(String(id));
}

// The answer's JSON; an Error with the server's own words if it refused.
export async function call(path, body) {
  const answer = await send(path, body);
  const value = JSON.parse(await answer.text(), keepDigits);
  problem.hidden = true;
  return value;
}

// An address for an <audio> element. It cannot send a token: then the file is fetched with one.
export async function audioAddress(path) {
  if (!sessionStorage.getItem(TOKEN)) return path;
  return URL.createObjectURL(await (await send(path)).blob());
}

async function send(path, body) {
  const token = sessionStorage.getItem(TOKEN);
  const request = {headers: token ? {Authorization: `Bearer ${token}`} : {}};
  if (body !== undefined) {
    request.method = "POST";
    request.headers["Content-Type"] = "application/json";
    request.body = JSON.stringify(body);
  }
  let answer;
  try {
    answer = await fetch(path, request);
  } catch {
    throw new Error("The server does not answer.");
  }
  if (answer.status === 401) {
    // Another request may have got a token since this one was sent.
    if (sessionStorage.getItem(TOKEN) === token) await askForToken();
    return send(path, body);
  }
  if (!answer.ok) throw new Error(await reason(answer));
  return answer;
}

async function reason(answer) {
  try {
    return `The server refused: ${(await answer.json()).error}`;
  } catch {
    return `The server answered with status ${answer.status}.`;
  }
}

function askForToken() {
  if (tokenForm.hidden) {
    const refused = sessionStorage.getItem(TOKEN) !== null;
    sessionStorage.removeItem(TOKEN);
    tokenForm.hidden = false;
    tokenField.focus();
    if (refused) showProblem(new Error("The server does not accept this token."));
  }
  return new Promise((resolve) => waiting.push(resolve));
}

tokenForm.addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(TOKEN, tokenField.value.trim());
  tokenField.value = "";
  tokenForm.hidden = true;
  problem.hidden = true;
  for (const again of waiting.splice(0)) again();
});

export function showProblem(error) {
  problem.textContent = error.message;
  problem.hidden = false;
}
