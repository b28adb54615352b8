/**
 * Splits a text into kept and changed pieces. Changed words are those outside a longest common subsequence of words.
 *
 * @param {string} before
 * @param {string} after
 * @returns {{words: string[], changed: boolean}[]} In the order of `after`.
 */
export function changes(before, after) {
  const old = words(before);
  const now = words(after);
  const common = Array.from({ length: old.length + 1 }, () => new Uint16Array(now.length + 1));
  for (let i = old.length - 1; i >= 0; i--) {
    for (let j = now.length - 1; j >= 0; j--) {
      common[i][j] = old[i] === now[j] ? common[i + 1][j + 1] + 1 : Math.max(common[i + 1][j], common[i][j + 1]);
    }
  }
  const found = [];
  let i = 0;
  for (let j = 0; j < now.length; j++) {
    while (i < old.length && old[i] !== now[j] && common[i + 1][j] >= common[i][j + 1]) i++;
    const kept = i < old.length && old[i] === now[j];
    if (found.at(-1)?.changed !== !kept) found.push({ words: [], changed: !kept });
    found.at(-1).words.push(now[j]);
    if (kept) i++;
  }
  return found;
}

const words = text => text.split(/\s+/).filter(Boolean);
