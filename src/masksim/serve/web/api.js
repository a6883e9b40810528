// The calls to the service. The token, if one is needed, lives in this tab's memory alone.

let token = "";

export const setToken = (value) => { token = value; };

const headers = () => (token ? { Authorization: `Bearer ${token}` } : {});

export class Refusal extends Error {
  constructor(code, message, wait = 0) {
    super(message);
    this.code = code;
    this.wait = wait; // seconds
  }
}

function refusal(status, text, wait) {
  try {
    const { code, message } = JSON.parse(text).error;
    return new Refusal(code, message, wait);
  } catch {
    return new Refusal("unreachable", `HTTP ${status}`, wait);
  }
}

export async function model() {
  const answer = await fetch("/v1/model", { headers: headers() });
  const text = await answer.text();
  if (!answer.ok) throw refusal(answer.status, text, 0);
  return JSON.parse(text);
}

/** Send one file. `progress` is told the share that is sent, 0 to 1; null once all is. */
export function detect(file, { maps = false, progress = () => {} } = {}) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest(); // fetch cannot tell how much is sent
    request.open("POST", `/v1/detect${maps ? "?maps=true" : ""}`);
    for (const [name, value] of Object.entries(headers())) request.setRequestHeader(name, value);
    request.upload.onprogress = (event) => {
      progress(event.loaded < event.total ? event.loaded / event.total : null);
    };
    request.upload.onload = () => progress(null);
    request.onload = () => {
      if (request.status === 200) resolve(JSON.parse(request.responseText));
      else reject(refusal(
        request.status, request.responseText, Number(request.getResponseHeader("Retry-After")) || 0,
      ));
    };
    request.onerror = () => reject(new Refusal("unreachable", "the connection failed"));
    const form = new FormData();
    form.append("file", file, file.name || "pasted");
    request.send(form);
  });
}

/** As `detect`, but a busy service is asked again, after as long as it says. */
export async function detectPatiently(file, options, onWait) {
  for (let tries = 0; ; tries += 1) {
    try {
      return await detect(file, options);
    } catch (error) {
      if (error.code !== "overloaded" || tries >= 8) throw error;
      const seconds = Math.max(error.wait, 1) * (1 + Math.random() / 2);
      onWait(seconds);
      await new Promise((go) => { setTimeout(go, 1000 * seconds); });
    }
  }
}
