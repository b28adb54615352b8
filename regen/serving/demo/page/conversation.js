import { byId, count, element } from "./element.js";
import { find } from "./finder.js";
import { ask, Refusal, stream } from "./server.js";

const NAMES = { brand: "Brand", category: "Category", price: "Price" };
const SPLITS = { test: "not met in training", validation: "not met in training", train: "met in training" };

let history = []; // item ids
let turns = []; // { item_id, critique }
let last = null; // the latest recommended item
let writing = null; // AbortController of the running turn

byId("choose-user").addEventListener("click", async () => {
  const user = await find({ title: "Choose a user", label: "An id, or words of a title", noun: "user", path: "users", row: described });
  if (user) open(user.user_id);
});
byId("again").addEventListener("click", start);
byId("say").addEventListener("submit", event => {
  event.preventDefault();
  say(byId("critique").value.trim());
});

function described({ user_id, purchases, split }) {
  return [element("span", { class: "title" }, user_id), element("span", { class: "soft" }, `${count(purchases, "purchase")}, ${SPLITS[split]}`)];
}

async function open(userId) {
  await shown(async () => {
    const user = await ask("user", { user_id: userId });
    const bought = user.histories[0].purchases;
    const known = bought.length > 1 ? bought.slice(0, -1) : bought;
    byId("whose").textContent = `User ${user.user_id}, ${SPLITS[user.split]}: ${count(known.length, "purchase")}.`;
    byId("purchases").replaceChildren(
      ...known.map(one => element("li", {}, element("p", { class: "title" }, one.title), element("p", { class: "soft" }, one.category ?? "")))
    );
    byId("next").hidden = bought.length < 2;
    byId("next").open = false;
    byId("bought-next").textContent = bought.at(-1).title;
    history = known.map(one => one.item_id);
    byId("again").disabled = false;
    start();
  });
}

function start() {
  turns = [];
  last = null;
  byId("turns").replaceChildren();
  turn("");
}

function say(critique) {
  if (!last) return;
  turns.push({ item_id: last.item_id, critique });
  turn(critique);
}

/** Asks for the next item and shows it and its text as they arrive. */
async function turn(critique) {
  writing?.abort();
  const mine = (writing = new AbortController());
  byId("say").hidden = true;
  byId("status").textContent = "Looking for an item …";
  const text = element("p", { class: "text", "aria-busy": "true" });
  await shown(async () => {
    try {
      for await (const event of stream("converse", { history, turns }, mine.signal)) {
        if (event.items) {
          byId("turns").append(written(critique, event.items, text));
          byId("status").textContent = `Recommended: ${event.items[0].title}.`;
          last = event.items[0];
          suggest(event.suggested);
        } else if (event.piece !== null) text.append(event.piece);
        else text.removeAttribute("aria-busy");
      }
    } finally {
      text.removeAttribute("aria-busy");
    }
    byId("say").hidden = false;
    byId("critique").value = "";
    if (turns.length) byId("critique").focus({ preventScroll: true });
    byId("say").scrollIntoView({ block: "nearest" });
  });
}

function written(critique, [first, ...others], text) {
  const said = turns.length ? [element("p", { class: "said" }, `You: ${critique || "Something else, please."}`)] : [];
  const attributes = Object.entries(NAMES).filter(([name]) => first[name] !== null);
  return element(
    "li", { class: "narrative both" }, ...said,
    element("h3", {}, first.title),
    element("ul", { class: "attributes soft" }, ...attributes.map(([name, shown]) => attribute(name, shown, first))),
    text,
    ...(others.length ? [element("details", { class: "notes" }, element("summary", { class: "soft" }, "Also recommended"),
      element("ul", {}, ...others.map(one => element("li", {}, one.title))))] : [])
  );
}

/** An attribute of an item, marked if it differs from the item before. */
function attribute(name, shown, item) {
  const value = `${shown}: ${worded(name, item)}`;
  if (!last || last[name] === item[name]) return element("li", {}, value);
  return element("li", {}, element("mark", {}, value), ` before: ${last[name] === null ? "none" : worded(name, last)}`);
}

const worded = (name, item) => (name === "price" ? `$${item.price.toFixed(2)}` : item[name]);

function suggest(critiques) {
  byId("suggested").replaceChildren(
    ...critiques.map(one => element("button", { type: "button", click: () => say(one) }, one))
  );
}

/** Runs a function and shows errors of the server. */
async function shown(work) {
  byId("problem").textContent = "";
  try {
    await work();
  } catch (error) {
    if (error.name === "AbortError") return;
    if (!(error instanceof Refusal)) throw error;
    byId("problem").textContent = error.message;
    byId("status").textContent = "";
  }
}

await shown(async () => {
  const about = await ask("about");
  byId("about").textContent = `Model ${about.run} on data ${about.data}.`;
  byId("critique").maxLength = about.longest;
  const { found } = await ask("users", { limit: 1 });
  if (found.length) await open(found[0].user_id);
});
