// Starts the page: the release, the listener, the ranking and the tree of IDs.

import {call, showProblem} from "./api.js";
import {byId} from "./elements.js";
import * as ids from "./ids.js";
import * as listener from "./listener.js";
import * as ranking from "./ranking.js";

async function start() {
  const release = await call("v1/browse/release");
  byId("release").textContent =
    `${release.release_id}, ${release.model}, ${release.tracks} tracks`;
  ranking.start();
  await Promise.all([listener.start(ranking.rank), ids.start(release.families)]);
}

start().catch(showProblem);
