// @ts-check
// What the server answers (llucid/look/server.py says it in words), and what the page remembers.

/** @typedef {{kind: "ablate" | "scale" | "patch" | "zero_frequency" | "code", layer?: number, head?: number, part?: "attention" | "feed_forward", name?: string, factor?: number, pair?: number}} Change */
/** @typedef {{id: number, piece: string, surprise: number | null, rank: number | null, entropy: number}} Token */
/** @typedef {{dim: number, layers: number, heads: number, kv_heads: number, head_dim: number, ffn_dim: number, vocab_size: number, context: number, rope_theta: number}} Config */
/** @typedef {{id: string, model: number, parent: string | null, changes: Change[], text: string | null, scores: string, tokens: Token[]}} Reading */
/** @typedef {{name: string, parameters: number, config: Config, has_tokenizer: boolean, snapshot: number | null}} Model */
/** @typedef {{models: Model[], first: string, tour: boolean, export: boolean, readings?: string[]}} Info */

/** @typedef {[number, number, number, number]} Span line (from 1), column (from 0), end line, end column (exclusive) */
/** @typedef {{function: string, kind: "variable" | "parameter" | "result" | "expression" | "use" | "weight", text: string, spans: Span[]}} Site */
/** @typedef {{file: string, text: string, sites: Site[]}} Source */
/** @typedef {{name: string, shape: number[], axes: (string | null)[], site: number, layer: number | null}} Value */
/** @typedef {{values: Value[], seen: [number, number | null, number | string][]}} Names */
/** @typedef {{min: number, max: number, mean: number, std: number, histogram: number[]}} Summary of the finite numbers; null if there are none */
/** @typedef {{id: number, piece: string, logit: number, p: number}} Candidate */
/** @typedef {{tokens: Candidate[], log_sum: number, vocab: number}} Next */
/** @typedef {{ids: number[][][], p: number[][][], pieces: Record<string, string>}} Lens */
/** @typedef {{stream: number[][], attention: number[][], feed_forward: number[][]}} Norms */
/** @typedef {{name: string, layer: number | null, head: number | null, value: number}} Part */
/** @typedef {{token: number, piece: string, logit: number, parts: Part[]}} Parts */
/** @typedef {{previous: number[][] | null, first: number[][] | null, same: number[][] | null, induction: number[][] | null, copying: number[][] | null}} Scores */
/** @typedef {{score: number, pairs: {frequency: number, value: number}[]}} Clocks */
/** @typedef {{kl: number[], cosine: (number[] | null)[]}} Comparison */
/** @typedef {{shape: number[], pool: number[], data: Float32Array, coarse: boolean}} Numbers coarse: of 8 bits, or the largest of blocks */

/** @typedef {{temperature: number, top_k: number, top_p: number, min_p: number}} Sampling */
/** @typedef {"text" | "code" | "stream" | "heads"} Pane */
/** @typedef {"run" | "beside" | "difference"} View */

/**
 * What is chosen: the same in all four panes.
 * @typedef {object} Choice
 * @property {number} token a place in the text
 * @property {number} layer
 * @property {number} head
 * @property {number | null} key the place that the chosen head looks at from there; null: where it looks most
 * @property {{site: number, nth: number} | null} spot an expression of llama.py, and which of its runs in the chosen layer
 * @property {number | null} target the token whose logit is taken apart; null: the likeliest one
 * @property {Sampling} sampling
 * @property {View} view
 * @property {Pane | null} full
 * @property {"place" | keyof Scores} sort
 */

/**
 * @typedef {Choice & {
 *   info: Info, run: Reading, beside: Reading | null, mine: Reading, compare: number | null,
 *   busy: boolean, error: string | null, tour: number | null, help: boolean, dark: boolean, playing: boolean
 * }} State
 */
/**
 * What the panes can do.
 * @typedef {object} Actions
 * @property {(next: Partial<State>) => void} choose
 * @property {(text: string) => void} type reads another text
 * @property {(ids: number[]) => void} goOn reads these ids
 * @property {(change: Change) => void} toggle reads the same text with this change, or without it
 * @property {() => void} undo reads it without changes
 * @property {(next: {model?: number, compare?: number | null}) => void} models reads the same text with other models
 */
/** @typedef {{state: State, act: Actions}} Props */
export {};
