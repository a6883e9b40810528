// Elements, made without strings of HTML: what a file is called can never become markup.

export function el(name, attributes = {}, children = []) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    if (key === "checked") made.checked = value;
    else made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...(Array.isArray(children) ? children : [children]));
  return made;
}
