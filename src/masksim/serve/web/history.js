// What was asked before: in this browser's own storage, small, and only if the user lets it.

const KEY = "masksim-history";
const OFF = "masksim-no-history";
const MOST = 40;

const storage = (() => {
  try {
    window.localStorage.setItem("masksim-try", "1");
    window.localStorage.removeItem("masksim-try");
    return window.localStorage;
  } catch { // forbidden, or full
    return null;
  }
})();

export const possible = storage !== null;

export const kept = () => possible && storage.getItem(OFF) === null;

export function setKept(yes) {
  if (!possible) return;
  if (yes) storage.removeItem(OFF);
  else {
    storage.setItem(OFF, "1");
    clear();
  }
}

export function entries() {
  if (!possible) return [];
  try {
    const found = JSON.parse(storage.getItem(KEY) ?? "[]");
    return Array.isArray(found) ? found.filter((one) => one?.answer?.verdict?.headline) : [];
  } catch {
    return [];
  }
}

/** An answer without its maps, which are large. */
export function withoutMaps(answer) {
  const { maps, ...rest } = answer;
  return rest;
}

/** Put a result first; the same file is there once. */
export function add(answer, thumbnail) {
  if (!kept()) return;
  const sha = answer.image.sha256;
  let all = entries().filter((one) => one.answer.image.sha256 !== sha);
  all.unshift({ time: Date.now(), thumbnail, answer: withoutMaps(answer) });
  all = all.slice(0, MOST);
  while (all.length) {
    try {
      storage.setItem(KEY, JSON.stringify(all));
      return;
    } catch { // no room: forget the oldest
      all.pop();
    }
  }
}

export function clear() {
  if (possible) storage.removeItem(KEY);
}
