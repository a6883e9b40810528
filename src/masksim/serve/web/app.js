// The page: takes files, asks the service, shows results, remembers them if it may.

import * as api from "./api.js";
import { el } from "./dom.js";
import * as history from "./history.js";
import { Result } from "./result.js";
import * as words from "./words.js";

const AT_ONCE = 2;
const THUMBNAIL = 96; // pixels, of the history
const PREVIEW = 480;

const $ = (id) => document.getElementById(id);
const results = $("results");
const waiting = [];
let running = 0;
let done = 0;
let total = 0;
let limits = null;

const say = (text) => { $("live").textContent = text; };

// --- the service

async function meet() {
  try {
    const model = await api.model();
    limits = model.limits;
    const photos = model.photos ? `${words.count(model.photos)} real photos` : "no photos";
    $("model").textContent =
      `${model.name} (${model.sha256.slice(0, 12)}), knows ${model.generators.length} generators, ` +
      `rates from ${photos}, version ${model.masksim}`;
    $("limits").textContent =
      `Up to ${words.megabytes(limits.max_bytes)} and ${Math.round(limits.max_pixels / 1e6)} megapixels. ` +
      "Images go to this service alone, are analysed in memory, and are not kept.";
    $("access").hidden = true;
    return true;
  } catch (error) {
    if (error.code === "unauthorised") {
      $("access").hidden = false;
      return false;
    }
    say(words.problem(error.code ?? "unreachable"));
    return false;
  }
}

$("access").addEventListener("submit", async (event) => {
  event.preventDefault();
  api.setToken($("token").value.trim());
  if (await meet()) {
    $("token").value = "";
    $("choose").focus();
    say("The token is accepted.");
  } else {
    $("access-note").textContent = "That is not the token.";
    say("That is not the token.");
    $("token").select();
  }
});

// --- pictures of pictures

async function small(file, side) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch { // a format that this browser cannot show
    return null;
  }
  const factor = Math.min(1, side / Math.max(bitmap.width, bitmap.height));
  const canvas = el("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * factor));
  canvas.height = Math.max(1, Math.round(bitmap.height * factor));
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  return canvas;
}

function smaller(canvas, side) {
  const factor = Math.min(1, side / Math.max(canvas.width, canvas.height));
  const made = el("canvas");
  made.width = Math.max(1, Math.round(canvas.width * factor));
  made.height = Math.max(1, Math.round(canvas.height * factor));
  made.getContext("2d").drawImage(canvas, 0, 0, made.width, made.height);
  return made.toDataURL("image/jpeg", 0.7);
}

// --- files

function overall() {
  $("progress").hidden = total < 2 || done === total;
  $("overall").value = total ? done / total : 0;
  $("overall-text").textContent = `${done} of ${total} analysed`;
}

function take(files) {
  const list = [...files];
  if (!list.length) return;
  if (done === total) done = total = 0;
  total += list.length;
  const shown = list.map((file) => {
    const result = new Result(file.name || "pasted image", file.size);
    waiting.push({ file, result });
    return result.element;
  });
  results.prepend(...shown);
  say(list.length === 1 ? `Analysing ${list[0].name || "the pasted image"}` : `Analysing ${list.length} images`);
  overall();
  shown[0].scrollIntoView({ block: "nearest" });
  while (running < AT_ONCE && waiting.length) work();
}

async function work() {
  running += 1;
  const { file, result } = waiting.shift();
  const name = file.name || "pasted image";
  try {
    if (limits && file.size > limits.max_bytes) {
      throw new api.Refusal("too_many_bytes", `It has ${words.bytes(file.size)}; up to ${words.megabytes(limits.max_bytes)} are allowed.`);
    }
    result.progress("Sending", 0);
    const answer = await api.detectPatiently(file, {
      maps: true,
      progress: (share) => result.progress(share === null ? "Analysing" : "Sending", share),
    }, (seconds) => result.progress(`Busy, asking again in ${Math.ceil(seconds)} s`, null));
    result.answer(answer);
    say(`${name}: ${answer.verdict.text}`);
    const canvas = await small(file, PREVIEW);
    if (canvas) result.thumbnail(canvas.toDataURL("image/jpeg", 0.85), `Preview of ${name}`);
    history.add(answer, canvas ? smaller(canvas, THUMBNAIL) : null);
    past();
  } catch (error) {
    result.fail(error.code ?? "unreachable", error.message);
    say(`${name}: not analysed. ${words.problem(error.code)}`);
    if (error.code === "unauthorised") $("access").hidden = false;
  } finally {
    running -= 1;
    done += 1;
    overall();
    if (waiting.length) work();
  }
}

$("choose").addEventListener("click", () => $("files").click());
$("files").addEventListener("change", (event) => {
  take(event.target.files);
  event.target.value = ""; // so that the same file can be chosen again
});

let depth = 0; // of dragenter: children enter before their parents are left
const zone = $("drop");
const carries = (event) => event.dataTransfer?.types.includes("Files");
document.addEventListener("dragenter", (event) => {
  if (!carries(event)) return;
  depth += 1;
  zone.classList.add("over");
});
document.addEventListener("dragleave", (event) => {
  if (!carries(event)) return;
  depth = Math.max(depth - 1, 0);
  if (!depth) zone.classList.remove("over");
});
document.addEventListener("dragover", (event) => {
  if (carries(event)) event.preventDefault();
});
document.addEventListener("drop", (event) => {
  if (!carries(event)) return;
  event.preventDefault(); // else the browser would open the file
  depth = 0;
  zone.classList.remove("over");
  take(event.dataTransfer.files);
});
document.addEventListener("paste", (event) => {
  const files = event.clipboardData?.files ?? [];
  if (files.length) {
    event.preventDefault();
    take(files);
  }
});

// --- history

function past() {
  const all = history.entries();
  $("clear").hidden = !all.length;
  $("history-note").hidden = all.length > 0;
  $("past").replaceChildren(...all.map((entry) => {
    const { answer, thumbnail, time } = entry;
    const picture = thumbnail ? el("img", { alt: "" }) : el("span", { class: "none" });
    if (thumbnail) picture.src = thumbnail;
    const button = el("button", { type: "button" }, [
      picture,
      el("span", {}, [
        el("span", { class: "past-level" }, answer.verdict.headline),
        el("span", { class: "past-name" }, `${answer.image.name}, ${new Date(time).toLocaleDateString()}`),
      ]),
    ]);
    button.addEventListener("click", () => {
      const result = new Result(answer.image.name, answer.image.n_bytes);
      result.answer(answer);
      if (thumbnail) result.thumbnail(thumbnail, `Preview of ${answer.image.name}`);
      results.prepend(result.element);
      result.element.focus();
      result.element.scrollIntoView({ block: "start" });
    });
    return el("li", {}, button);
  }));
}

const keep = $("keep");
keep.checked = history.kept();
keep.disabled = !history.possible;
keep.addEventListener("change", () => {
  history.setKept(keep.checked);
  past();
  say(keep.checked ? "Results are kept in this browser." : "The history is off and cleared.");
});
$("clear").addEventListener("click", () => {
  history.clear();
  past();
  keep.focus();
  say("The history is cleared.");
});

past();
meet();
