// Numbers in plain words; a verdict's own words come with it from the service.
// Nothing here touches the page.

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

/** What the rate was measured on, with numbers. */
export function comparedWith(verdict) {
  const sources = verdict.sources ? ` from ${count(verdict.sources)} sources` : "";
  const stratum = verdict.stratum === "all" ? "" : `: ${verdict.stratum}`;
  const photos = verdict.kind.includes("copies of") ? "copies of real photos" : "real photos";
  return `${count(verdict.sample_size)} ${photos}${sources}${stratum}`;
}

export const problem = (code) => PROBLEMS[code] ?? "This image could not be analysed.";
