import { byId } from "./element.js";

const dialog = byId("review");
const fields = { rating: byId("rating"), review_title: byId("review-title"), review: byId("review-text") };
let settle = () => {};

/**
 * Opens a dialog to edit the review of a purchase.
 *
 * @param {Object} purchase
 * @returns {Promise<Object | null>} The purchase with its new rating and review; null if the user cancels.
 */
export function edit(purchase) {
  byId("review-heading").textContent = `Review of ${purchase.title}`;
  for (const [name, field] of Object.entries(fields)) field.value = purchase[name] ?? "";
  return new Promise(done => {
    settle = saved => {
      dialog.close();
      done(saved && { ...purchase, ...said() });
    };
    dialog.showModal();
  });
}

function said() {
  const number = fields.rating.valueAsNumber;
  return {
    rating: Number.isNaN(number) ? null : number,
    review_title: fields.review_title.value.trim() || null,
    review: fields.review.value.trim() || null,
  };
}

byId("review-save").addEventListener("click", () => settle(true));
byId("review-cancel").addEventListener("click", () => settle(false));
dialog.addEventListener("cancel", event => {
  event.preventDefault();
  settle(false);
});
