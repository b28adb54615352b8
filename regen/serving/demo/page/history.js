import { byId, element } from "./element.js";

const SHORT = 160; // characters; longer reviews are folded

/**
 * Draws the purchases, oldest first.
 *
 * @param {Object[]} history
 * @param {{swap: Function, review: Function, remove: Function}} actions Called with the index of a purchase.
 */
export function drawHistory(history, actions) {
  byId("purchases").replaceChildren(...history.map((purchase, at) => drawn(purchase, at, actions)));
  byId("legend").hidden = true;
}

/** Draws CF's share of each purchase, 0 to 1, below the purchase. */
export function drawShares(shares) {
  byId("legend").hidden = false;
  [...byId("purchases").children].forEach((entry, at) => {
    const place = entry.querySelector(".share");
    place.hidden = false;
    const percent = Math.round(100 * shares[at]);
    place.querySelector(".bar").style.setProperty("--share", `${percent}%`);
    place.querySelector(".figure").textContent = `cf ${percent} %`;
  });
}

/** Focuses a button of the purchase at that index, or of the last purchase. */
export function focusPurchase(at, button) {
  const entries = byId("purchases").children;
  const entry = entries[Math.min(at, entries.length - 1)];
  (entry?.querySelector(`.${button}`) ?? byId("add")).focus();
}

function drawn(purchase, at, actions) {
  const button = (name, label) =>
    element("button", { type: "button", class: `quiet ${name}`, "aria-label": `${label} ${purchase.title}`, click: () => actions[name](at) }, label);
  const facts = [purchase.category, purchase.rating === null ? null : `rated ${purchase.rating}`, purchase.day];
  return element(
    "li",
    {},
    element("p", { class: "title", dir: "auto" }, purchase.title),
    element("p", { class: "facts soft" }, ...separated(facts.filter(Boolean))),
    ...(purchase.review_title ? [element("p", { class: "said heading", dir: "auto" }, purchase.review_title)] : []),
    ...(purchase.review ? [folded(purchase.review)] : []),
    element(
      "p",
      { class: "share", hidden: true },
      element("span", { class: "bar", "aria-hidden": "true" }),
      element("span", { class: "figure" })
    ),
    element("p", { class: "edits" }, button("swap", "Swap"), button("review", "Review"), button("remove", "Remove"))
  );
}

/** A review; a long one shows its beginning and unfolds. */
function folded(text) {
  if (text.length <= SHORT) return element("p", { class: "said", dir: "auto" }, text);
  const beginning = `${text.slice(0, SHORT).trimEnd()}…`;
  return element(
    "details",
    { class: "said" },
    element(
      "summary",
      {},
      element("span", { class: "beginning closed", dir: "auto" }, beginning),
      " ",
      element("span", { class: "more closed" }, "the whole review"),
      element("span", { class: "more opened" }, "shorter")
    ),
    element("p", { dir: "auto" }, text)
  );
}

const separated = facts => facts.flatMap((fact, at) => [at ? " · " : "", element("span", { dir: "auto" }, fact)]);
