// One result on the page: the verdict first, then what it rests on.

import { el } from "./dom.js";
import { withoutMaps } from "./history.js";
import { draw, overview } from "./maps.js";
import * as words from "./words.js";

const LEVELS = [["strong evidence", 0.01], ["evidence", 0.05], ["weak evidence", 0.1], ["no evidence", 1]];
const LEAST = 0.0005; // left end of the scale
const MOST_STATEMENTS = 8;

const place = (rate) => {
  const share = Math.log(Math.max(rate, LEAST) / LEAST) / Math.log(1 / LEAST);
  return Math.min(Math.max(100 * share, 0), 100);
};

/** Where the rate lies between "hardly any photo" and "every photo". */
function scale(verdict) {
  const value = verdict.false_positive_rate;
  const here = verdict.level; // fragile and inconclusive have no place on the scale
  const bands = [];
  const names = [];
  let from = LEAST;
  for (const [level, top] of LEVELS) {
    const band = el("div", { class: level === here ? "band here" : "band" });
    band.style.flexGrow = place(top) - place(from);
    bands.push(band);
    const name = el("span", { class: level === here ? "here" : "" },
      level.replace(" evidence", "") === "evidence" ? "evidence" : level.replace(" evidence", ""));
    const middle = (place(top) + place(from)) / 2;
    name.style.left = `${middle}%`;
    names.push(name);
    from = top;
  }
  const marks = [];
  if (verdict.interval) {
    const range = el("div", { class: "range" });
    const left = place(verdict.interval.low);
    range.style.left = `${left}%`;
    range.style.width = `${Math.max(place(verdict.interval.high) - left, 0.5)}%`;
    marks.push(range);
  }
  const point = el("div", { class: "point" });
  point.style.left = `${place(value)}%`;
  marks.push(point);
  const ticks = [[LEAST, "rarer"], [0.01, "1 %"], [0.05, "5 %"], [0.1, "10 %"], [1, "100 %"]].map(([at, text]) => {
    const tick = el("span", {}, text);
    tick.style.left = `${place(at)}%`;
    return tick;
  });
  return el("figure", {
    class: ["strong evidence", "evidence", "weak evidence"].includes(here) ? "scale" : "scale faint",
    role: "img",
    "aria-label": `Share of real photos that score at least as high: ${words.rate(value, verdict.sample_size)}`,
  }, [
    el("div", { class: "names" }, names),
    el("div", { class: "rail" }, [...bands, ...marks]),
    el("div", { class: "ticks" }, ticks),
  ]);
}

function points(verdict) {
  if (!verdict.cautions.length) return [];
  return [
    el("h3", { class: "label" }, "Keep in mind"),
    el("ul", { class: "points" }, verdict.cautions.map((caution) => el("li", {}, caution))),
  ];
}

/** Known open watermarks in the pixels: evidence of its own. */
function marks(answer) {
  if (!answer.watermarks?.length) return [];
  return [
    el("h3", { class: "label" }, "Watermark"),
    el("ul", { class: "points watermarks" }, answer.watermarks.map(({ text }) => el("li", {}, text))),
  ];
}

/** What the file says of its own origin: beside the verdict, and no part of it. */
function said(answer) {
  const { origin } = answer;
  if (!origin) return []; // of an answer that was kept before there was any
  const lines = origin.statements.slice(0, MOST_STATEMENTS).map(({ text }) => el("li", {}, text));
  const more = origin.statements.length - lines.length;
  if (more > 0) lines.push(el("li", {}, `${more} more, in the JSON.`));
  if (origin.problems.length) lines.push(el("li", {}, `Not read: ${origin.problems.join("; ")}.`));
  return [
    el("h3", { class: "label" }, "The file says"),
    el("div", { class: "said" }, [
      // The sentence of both says what the summary says, and more.
      origin.beside ? el("p", { class: "beside" }, origin.beside) : el("p", {}, origin.summary),
      ...(origin.says === "nothing" ? [] : [el("p", { class: "note" }, words.FILE_CAUTION)]),
      ...(lines.length ? [el("details", {}, [
        el("summary", {}, "What this rests on"),
        el("ul", { class: "points" }, lines),
      ])] : []),
    ]),
  ];
}

function bars(answer) {
  const calibrated = answer.scores.every((score) => score.false_positive_rate !== null);
  if (!calibrated) return [];
  const named = answer.verdict.generator;
  const rows = answer.scores.map((score) => {
    const rarity = Math.log(1 / score.false_positive_rate) / Math.log(score.sample_size + 1);
    const bar = el("span", { class: "bar" });
    bar.style.width = `${100 * Math.min(Math.max(rarity, 0), 1)}%`;
    return el("tr", { class: score.generator === named ? "first" : "" }, [
      el("th", { scope: "row", class: "name" }, score.generator),
      el("td", { "aria-hidden": "true" }, bar),
      el("td", { class: "number" }, words.rate(score.false_positive_rate, score.sample_size)),
    ]);
  });
  return [el("details", {}, [
    el("summary", {}, "All generators"),
    el("div", {}, el("table", { class: "bars" }, [
      el("caption", { class: "unseen" }, "For each generator, the share of real photos that score as high"),
      el("thead", {}, el("tr", {}, [
        el("th", { scope: "col" }, ""),
        el("th", { scope: "col", class: "bar-head", "aria-hidden": "true" }, "longer: rarer among real photos"),
        el("th", { scope: "col", class: "number" }, "photos as high"),
      ])),
      el("tbody", {}, rows),
    ])),
  ])];
}

/** What counted, in pictures; none where the image cannot be judged, and of a result that was kept. */
function counted(answer) {
  if (!answer.maps?.telling) return [];
  const body = el("div");
  overview(answer).then((cards) => body.append(...cards));
  return [
    el("h3", { class: "label" }, "What counted"),
    el("p", { class: "note" }, "Faint regular patterns in the finest noise, coarse ones in the middle, fine ones " +
      "at the edges: red where this image has what the generator’s images have, blue where it has not."),
    body,
  ];
}

function mapsPart(answer) {
  const body = el("div");
  const part = el("details", {}, [el("summary", {}, "Maps of every generator and channel"), body]);
  part.addEventListener("toggle", () => {
    if (!part.open || body.firstChild) return;
    if (answer.maps) draw(body, answer);
    else body.append(el("p", { class: "note" }, "The maps are not kept: drop the image again to see them."));
  });
  return part;
}

function factsPart(answer) {
  const { image, verdict } = answer;
  const rows = [
    ["File", [image.format, `${words.count(image.width)} × ${words.count(image.height)} pixels`, words.bytes(image.n_bytes)].join(", ")],
    ["SHA-256", el("span", { class: "hash" }, image.sha256)],
  ];
  if (image.jpeg_quality !== null) {
    const chroma = image.jpeg_subsampling ? `, chroma ${image.jpeg_subsampling}` : "";
    rows.push(["JPEG", `quality about ${image.jpeg_quality}${chroma}`]);
  }
  if (image.treatments.length) rows.push(["Treatment", image.treatments.join(", ")]);
  if (verdict.sample_size) rows.push(["Compared with", words.comparedWith(verdict)]);
  if (verdict.stability) {
    rows.push(["Photos as high after", Object.entries(verdict.stability)
      .map(([how, rate]) => `${how}: ${words.rate(rate, Infinity)}`).join("; ")]);
  }
  if (verdict.number_of_false_alarms !== null) {
    rows.push(["Expected matches", `${Number(verdict.number_of_false_alarms.toPrecision(2))} generators by chance`]);
  }
  rows.push(["Analysed", `${answer.windows.length} windows in ${answer.seconds.toFixed(2)} s`]);
  rows.push(["Detector", [answer.detector.name, " ", el("span", { class: "hash" }, answer.detector.sha256.slice(0, 16))]]);
  const save = el("button", { class: "quiet", type: "button" }, "Save as JSON");
  save.addEventListener("click", () => {
    const url = URL.createObjectURL(new Blob([JSON.stringify(withoutMaps(answer), null, 2)], { type: "application/json" }));
    const link = el("a", { href: url, download: `${image.name.replace(/[^\w.-]+/g, "_")}.json` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(url), 1000);
  });
  return el("details", {}, [
    el("summary", {}, "File and analysis"),
    el("div", {}, [
      el("dl", { class: "facts" }, rows.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)])),
      el("div", { class: "actions" }, save),
    ]),
  ]);
}

/** An article for one file; it shows progress until `answer` or `fail` is called. */
export class Result {
  constructor(name, nBytes) {
    this.title = el("h2", { class: "verdict waiting" }, "Waiting");
    this.bar = el("progress", { max: 1, "aria-label": `Progress of ${name}` });
    this.body = el("div", {}, [this.title, this.bar]);
    const suffix = /\.([a-z0-9]{1,5})$/i.exec(name);
    this.blank = el("div", { class: "blank" }, el("span", {}, suffix ? suffix[1] : ""));
    this.facts = el("p", { class: "file-facts" }, nBytes ? words.bytes(nBytes) : "");
    this.preview = el("div", { class: "preview" }, [this.blank, el("p", { class: "file" }, name), this.facts]);
    this.element = el("article", { class: "result", "aria-label": name, tabindex: "-1" }, [this.preview, this.body]);
  }

  thumbnail(url, alt) {
    const image = el("img", { alt });
    image.src = url;
    this.preview.firstChild.replaceWith(image);
  }

  progress(text, share) {
    this.title.textContent = text;
    if (share === null) this.bar.removeAttribute("value");
    else this.bar.value = share;
  }

  answer(answer) {
    const { verdict, image } = answer;
    if (this.preview.firstChild === this.blank) {
      this.blank.replaceChildren(el("span", {}, image.format));
    }
    this.facts.textContent = `${image.format}, ${words.count(image.width)} × ${words.count(image.height)}, ${words.bytes(image.n_bytes)}`;
    this.body.replaceChildren(
      el("h2", { class: "verdict" }, verdict.headline),
      el("p", { class: "plain" }, verdict.explanation),
      ...(verdict.false_positive_rate === null ? [] : [scale(verdict)]),
      ...points(verdict),
      ...said(answer),
      ...marks(answer),
      ...counted(answer),
      ...bars(answer),
      mapsPart(answer),
      factsPart(answer),
    );
  }

  fail(code, message) {
    this.body.replaceChildren(
      el("h2", { class: "verdict" }, "Not analysed"),
      el("p", { class: "plain" }, words.problem(code)),
      el("p", { class: "measured" }, message),
    );
  }
}
