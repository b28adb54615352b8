/**
 * Makes an element. Strings become text, never markup; all data enter the page this way.
 *
 * @param {string} tag
 * @param {Object<string, string | boolean | ((event: Event) => void)>} attributes Functions are listeners.
 * @param {...(Node | string)} children
 */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(name, value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

/** The element with that id. */
export const byId = id => document.getElementById(id);

/** "1 item", "3 items". */
export const count = (number, noun) => `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;
