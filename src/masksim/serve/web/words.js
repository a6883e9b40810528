// Numbers and verdicts in plain words. Nothing here touches the page.

const NAMES = {
  "dalle2": "DALL·E 2",
  "dalle3": "DALL·E 3",
  "flux1": "FLUX.1",
  "gpt-image": "GPT Image",
  "imagen": "Imagen",
  "midjourney": "Midjourney",
  "sd1": "Stable Diffusion 1",
  "sdxl": "Stable Diffusion XL",
};

const PROBLEMS = {
  not_an_image: "This is not an image file.",
  empty_file: "This file is empty.",
  truncated: "The file ends too early; it is not complete.",
  unreadable: "The file is damaged.",
  unsupported: "This kind of image cannot be read.",
  too_small: "The image is too small to measure anything.",
  too_many_bytes: "The file is too large for this service.",
  unsupported_type: "This kind of file cannot be read.",
  too_many_pixels: "The image has too many pixels for this service.",
  overloaded: "The service is busy. Try again in a while.",
  timeout: "The analysis took too long.",
  upload_timeout: "The upload took too long.",
  unauthorised: "The service asks for an access token.",
  not_ready: "The service is starting or stopping. Try again in a while.",
  unreachable: "The service cannot be reached.",
};

export const FILE_CAUTION = "Such entries are easily forged and easily lost. They are shown beside the " +
  "verdict, and are no part of it.";

export const generatorName = (name) => NAMES[name] ?? name;

/** A sentence of the service with generators as their makers call them. */
export const named = (text) => text.replace(
  /(?<![\w-])[a-z]+(?:-[a-z]+|[0-9]+|[a-z])*(?![\w-])/g, (word) => NAMES[word] ?? word,
);

export const count = (n) => n.toLocaleString("en-US");

export function percent(rate) {
  if (rate >= 0.995) return "100 %";
  const value = 100 * rate;
  return `${value >= 9.95 ? Math.round(value) : Number(value.toPrecision(2))} %`;
}

/** A rate with the digits its sample supports, as the command line writes it. */
export function rate(value, sampleSize) {
  const least = 1 / (sampleSize + 1);
  return value <= least * (1 + 1e-9) ? `at most ${percent(least)}` : percent(value);
}

export function bytes(n) {
  if (n < 1000) return `${n} bytes`;
  return n < 1e6 ? `${(n / 1e3).toFixed(0)} kB` : `${(n / 1e6).toFixed(1)} MB`;
}

/** A limit of the service. */
export const megabytes = (n) => `${Math.round(n / 1e6) || 1} MB`;

export const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);

/** The verdict as a heading. */
export function heading(verdict) {
  switch (verdict.level) {
    case "inconclusive": return "Inconclusive";
    case "no evidence": return "No evidence of a known generator’s pattern";
    case "fragile": return "A pattern is there, but does not last";
    case "uncalibrated": return "Not calibrated";
    default:
      return verdict.generator === null
        ? `${capital(verdict.level)} of a generator’s pattern`
        : `${capital(verdict.level)} of ${generatorName(verdict.generator)}’s pattern`;
  }
}

/** How many real photos score as high, as one would say it. */
function share(value, sampleSize) {
  if (value <= (1 + 1e-9) / (sampleSize + 1)) {
    return `None of ${count(sampleSize)} real photos like this one scores`;
  }
  if (value < 0.0295) return `About ${Math.round(1000 * value)} in 1,000 real photos like this one score`;
  const n = Math.round(100 * value);
  return n >= 99
    ? "Nearly all real photos like this one score"
    : `About ${n} in 100 real photos like this one score${n === 1 ? "" : ""}`;
}

/** One or two plain sentences under the heading. */
export function plainly(verdict) {
  if (verdict.false_positive_rate === null) return verdict.text;
  const photos = `${share(verdict.false_positive_rate, verdict.sample_size)} at least as high for ` +
    "some generator.";
  switch (verdict.level) {
    case "inconclusive":
      return "Something about this image speaks against any answer. The rate below is what was " +
        "measured; do not rely on it.";
    case "fragile":
      return "The image shows a generator’s pattern, but one small re-encoding, as any site may do, " +
        `takes it away. ${photos}`;
    case "no evidence":
      return `${photos} That does not show that the image is a photo.`;
    default:
      return verdict.unknown_generator
        ? `${photos} It is not clearly one of the generators that this detector knows.`
        : photos;
  }
}

/** What the rate was measured on. */
export function measuredOn(verdict) {
  if (verdict.false_positive_rate === null) return "";
  const value = rate(verdict.false_positive_rate, verdict.sample_size);
  const range = verdict.interval
    ? ` (95 % interval ${percent(verdict.interval.low).replace(" %", "")} to ` +
      `${percent(verdict.interval.high)})`
    : "";
  const sources = verdict.sources ? ` from ${count(verdict.sources)} sources` : "";
  const kind = verdict.stratum === "all" ? "" : " of the same kind";
  return `${capital(value)}${range}, measured on ${count(verdict.sample_size)} real ` +
    `photos${kind}${sources}.`;
}

export const problem = (code) => PROBLEMS[code] ?? "This image could not be analysed.";
