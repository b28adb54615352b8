import { count, element } from "./element.js";
import { ask } from "./server.js";

const LIMIT = 20;
const PAUSE = 150; // ms without typing before a search

const title = element("h2", { id: "finder-title" });
const label = element("label", { for: "query" });
const query = element("input", {
  type: "search", id: "query", autocomplete: "off", spellcheck: "false", maxlength: "200", "aria-describedby": "found-count"
});
const number = element("p", { id: "found-count", class: "soft", role: "status" });
const list = element("ul", { id: "found" });
const cancel = element("button", { type: "button", id: "finder-cancel", click: () => close(null) }, "Cancel");
const dialog = element(
  "dialog",
  { id: "finder", "aria-labelledby": "finder-title" },
  title,
  element("p", { class: "field" }, label, query),
  number,
  list,
  element("div", { class: "tools" }, cancel)
);
document.body.append(dialog);
let current = null; // the search that is open, with the function that takes its result

/**
 * Opens a dialog in which the user searches and chooses.
 *
 * @param {{title: string, label: string, noun: string, path: string, row: (found: Object) => (Node | string)[]}} what
 * @returns {Promise<Object | null>} The choice; null if the user cancels.
 */
export function find(what) {
  title.textContent = what.title;
  label.textContent = what.label;
  query.value = "";
  return new Promise(chosen => {
    current = { ...what, chosen };
    dialog.showModal();
    search();
  });
}

async function search() {
  const asked = current;
  const wanted = query.value;
  try {
    const { found, total } = await ask(asked.path, { query: wanted, limit: LIMIT });
    if (asked !== current || wanted !== query.value) return; // a newer search is running
    number.textContent = said(total, found.length, asked.noun);
    list.replaceChildren(
      ...found.map(one => element("li", {}, element("button", { type: "button", click: () => close(one) }, ...asked.row(one))))
    );
  } catch (error) {
    number.textContent = error.message;
  }
}

function said(total, shown, noun) {
  if (!total) return query.value.trim() ? `No ${noun} has these words.` : "";
  return total > shown ? `The first ${shown} of ${count(total, noun)}.` : `${count(total, noun)}.`;
}

function close(choice) {
  const { chosen } = current;
  current = null;
  dialog.close();
  list.replaceChildren();
  chosen(choice);
}

let waiting = 0;
query.addEventListener("input", () => {
  clearTimeout(waiting);
  waiting = setTimeout(() => current && search(), PAUSE);
});
dialog.addEventListener("cancel", event => {
  event.preventDefault();
  close(null);
});
dialog.addEventListener("keydown", event => {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  const stops = [query, ...list.querySelectorAll("button")];
  const at = stops.indexOf(document.activeElement);
  if (!step || at < 0) return;
  event.preventDefault();
  stops[Math.min(Math.max(at + step, 0), stops.length - 1)].focus();
});
