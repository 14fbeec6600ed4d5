// @ts-check
// The filters of llucid/generation/sampling.py once more, so that the sliders answer at once.

/** @typedef {import("look/types.js").Sampling} Sampling */

/** @type {(logits: Float32Array) => Float64Array} */
export function softmax(logits) {
  let most = -Infinity, sum = 0;
  for (const z of logits) if (z > most) most = z;
  const p = new Float64Array(logits.length);
  for (let i = 0; i < p.length; i++) sum += p[i] = Math.exp(logits[i] - most);
  for (let i = 0; i < p.length; i++) p[i] /= sum;
  return p;
}

/** @type {(logits: Float32Array) => Uint32Array} ids from the likeliest to the least likely */
export function ranking(logits) {
  return Uint32Array.from(logits.keys()).sort((a, b) => logits[b] - logits[a] || a - b);
}

/**
 * Temperature first, then top-k, top-p and min-p; what is left is made to sum to 1.
 * @param {Float32Array} logits
 * @param {Uint32Array} order `ranking(logits)`
 * @param {Sampling} sampling temperature 0 keeps the likeliest only; top_k 0 keeps all, and k those equal to the k-th, too
 * @returns {{p: Float64Array, kept: number}} probabilities, and how many tokens are left
 */
export function sample(logits, order, { temperature, top_k, top_p, min_p }) {
  const p = new Float64Array(logits.length);
  if (temperature === 0) {
    p[order[0]] = 1;
    return { p, kept: 1 };
  }
  const scaled = logits.map((z) => z / temperature), all = softmax(scaled);
  let limit = top_k > 0 ? Math.min(top_k, order.length) : order.length;
  while (limit < order.length && scaled[order[limit]] === scaled[order[limit - 1]]) limit++;
  let inside = 0;
  for (let i = 0; i < limit; i++) inside += all[order[i]];
  let kept = 0, before = 0, sum = 0;
  for (; kept < limit; kept++) {
    const share = all[order[kept]] / inside;
    if (before > top_p || share < (min_p * all[order[0]]) / inside) break;
    before += share;
    sum += all[order[kept]];
  }
  for (let i = 0; i < kept; i++) p[order[i]] = all[order[i]] / sum;
  return { p, kept };
}

/**
 * The id that a random number from 0 to 1 draws: that at its place in the probabilities, one after the other.
 * @param {Float64Array} p
 * @param {Uint32Array} order
 * @param {number} kept
 * @param {number} random
 */
export function draw(p, order, kept, random) {
  let at = 0;
  while (at < kept - 1 && (random -= p[order[at]]) >= 0) at++;
  return order[at];
}

/** @type {(p: Float64Array) => number} in nats */
export function entropy(p) {
  let sum = 0;
  for (const x of p) if (x > 0) sum -= x * Math.log(x);
  return sum;
}
