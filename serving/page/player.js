// The one audio element of the page.

import {audioAddress} from "./api.js";
import {byId, titleOf} from "./elements.js";

const audio = byId("audio");

export async function play(track) {
  const address = await audioAddress(`v1/browse/tracks/${track.track_id}/audio`);
  if (audio.src.startsWith("blob:")) URL.revokeObjectURL(audio.src);
  byId("player").hidden = false;
  byId("playing").textContent = titleOf(track);
  audio.src = address;
  await audio.play();
}
