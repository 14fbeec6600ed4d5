// @ts-check
// A guided tour: eight steps, each of which chooses what it speaks about.
import { html, useEffect, useRef } from "look/vendor/preact.js";
import { address, edit, get, isFile, useAnswer } from "look/api.js";
import { percent, short, visible } from "look/colour.js";

/** @typedef {import("look/types.js").Props} Props */
/** @typedef {import("look/types.js").State} State */
/** @typedef {import("look/types.js").Pane} PaneName */
/** @typedef {{layer: number, head: number, score: number} | null} Best */

/** @type {(grid: number[][] | null | undefined) => Best} */
function best(grid) {
  /** @type {Best} */
  let top = null;
  grid?.forEach((row, layer) => row.forEach((score, head) => {
    if (score !== null && (!top || score > top.score)) top = { layer, head, score };
  }));
  return top;
}

/** The last token that was there before, after another than the first: where induction can be seen. @type {(state: State) => number} */
function repeated({ run }) {
  for (let place = run.tokens.length - 1; place > 1; place--) {
    const before = run.tokens.findIndex((one, n) => n > 0 && n < place && one.id === run.tokens[place].id && run.tokens[n - 1]?.id === run.tokens[place - 1].id);
    if (before > 0 && visible(run.tokens[place].piece).replace(/\W/g, "").length > 1) return place;
  }
  return run.tokens.length - 1;
}

/** @type {(state: State, name: string, inside: string) => Promise<{site: number, nth: number} | null>} */
async function spotOf(state, name, inside) {
  /** @type {import("look/types.js").Source} */
  const source = await get(address("source"));
  const site = source.sites.findIndex((one) => one.kind === "variable" && one.text.trim() === name && one.function === inside);
  return site < 0 ? null : { site, nth: 0 };
}

/**
 * @type {{pane: PaneName, title: string, text: (state: State, scores: import("look/types.js").Scores | undefined) => unknown,
 *         show: (state: State, scores: import("look/types.js").Scores) => Partial<State> | Promise<Partial<State>>}[]}
 */
const STEPS = [
  {
    pane: "text", title: "A text becomes tokens",
    text: ({ run }) => html`The model does not read letters. It reads <b>tokens</b>, pieces of words, each with a number: here are ${run.tokens.length}. The stronger its <b>colour</b>, the less the model expected a token. The first words surprise it; where the text repeats itself, it knows what comes.`,
    show: (state) => ({ token: Math.min(3, state.run.tokens.length - 1), full: null }),
  },
  {
    pane: "text", title: "It predicts the next token, and nothing else",
    text: ({ run, token }) => html`After “${visible(run.tokens[token].piece)}”, every token of the vocabulary gets a probability: ten of them are the bars. Move <b>temperature</b> and see how the bars even out, or click a bar: the text goes on from there, and the model reads it anew.`,
    show: (state) => ({ token: Math.max(0, repeated(state) - 1), target: null, full: null }),
  },
  {
    pane: "code", title: "The whole model is this file",
    text: () => html`Nothing is hidden: this is llama.py, and it has just run. <b>n</b> goes to the next line that runs, <b>p</b> back. Here a token's vector is normalised: <b>x</b> is divided by its root mean square. The picture below has a row for each token.`,
    show: async (state) => ({ spot: await spotOf(state, "x_wide", "rms_norm"), layer: 0 }),
  },
  {
    pane: "code", title: "Attention in three lines",
    text: () => html`A query of each token meets the key of every earlier one: <b>scores</b>. A softmax makes them probabilities, <b>p</b>: every row sums to 1, and what comes later is hidden, so the picture is a triangle. Then each token takes that mixture of the others' values.`,
    show: async (state, scores) => {
      const top = best(scores.previous);
      return { spot: await spotOf(state, "p", "attention_written_out"), ...(top && { layer: top.layer, head: top.head }) };
    },
  },
  {
    pane: "stream", title: "The residual stream",
    text: ({ run, token }) => html`Each block only <b>adds</b> to a token's vector. If we stop after a block and ask what the model would say by now, we get these rows: from the embedding above to the answer below. Follow the outlined column, after “${visible(run.tokens[token].piece)}”: where does the answer appear? On the right is what wrote it.`,
    show: (state) => ({ token: Math.max(0, repeated(state) - 1), layer: state.info.models[state.run.model].config.layers - 1 }),
  },
  {
    pane: "heads", title: "A head that looks one back",
    text: (_, scores) => {
      const top = best(scores?.previous);
      return html`Each head has learnt where to look. ${top && html`Head <b>${top.layer}.${top.head}</b> looks at the token just before (${percent(top.score)} of its attention): the line below the diagonal.`} So every token knows by whom it was preceded. That alone says little, but the next layer can use it.`;
    },
    show: (_, scores) => { const top = best(scores.previous); return top ? { layer: top.layer, head: top.head, key: null, sort: "place" } : {}; },
  },
  {
    pane: "heads", title: "An induction head",
    text: (_, scores) => {
      const top = best(scores?.induction);
      return top ? html`Head <b>${top.layer}.${top.head}</b> finds an earlier copy of the present token and looks at <b>what came after it</b> (score ${short(top.score, 2)}). With the head of the step before it makes a circuit that continues whatever repeats: Olsson et al. (2022) found it in every large model.` : html`With a text that repeats itself, an induction head shows here: one that looks at what came after an earlier copy of the present token. Type a sentence twice.`;
    },
    show: (state, scores) => { const top = best(scores.induction); return { token: Math.max(0, repeated(state) - 1), key: null, target: null, ...(top && { layer: top.layer, head: top.head }) }; },
  },
  {
    pane: "heads", title: "Take it out, and see",
    text: ({ run, beside, token, layer, head }) => {
      const gone = run.changes.length > 0 && beside, next = run.tokens[token + 1];
      const p = (/** @type {import("look/types.js").Reading} */ one) => percent(Math.exp(-(one.tokens[token + 1]?.surprise ?? 0)));
      return html`Is it really that head? ${gone && next
        ? html`Head ${run.changes[0].layer}.${run.changes[0].head} writes nothing now. After “${visible(run.tokens[token].piece)}” the model gave “${visible(next.piece)}” ${p(beside)}; without the head, <b>${p(run)}</b>. Hollow bars are the unchanged run; <b>d</b> goes round between the two and their difference, <b>u</b> undoes it.`
        : html`With llucid look running, <b>a</b> takes head ${layer}.${head} out, and every pane shows what changes.`} This is how one finds out what a part is for. The rest is yours: type a text of your own.`;
    },
    show: async (state, scores) => {
      const top = best(scores.induction) ?? best(scores.previous), { run } = state;
      if (!top || isFile || run.changes.length) return top ? { layer: top.layer, head: top.head } : {};
      const changed = await edit(run.id, [{ kind: "ablate", layer: top.layer, head: top.head }]);
      // Where the head is missed most: the next token was expected, and is no longer.
      const loss = (/** @type {number} */ place) => Math.exp(-(run.tokens[place + 1].surprise ?? 0)) - Math.exp(-(changed.tokens[place + 1].surprise ?? 0));
      const places = [...Array(run.tokens.length - 1).keys()].sort((a, b) => loss(b) - loss(a));
      return { run: changed, beside: run, view: "run", token: places[0] ?? 0, key: null, target: run.tokens[(places[0] ?? 0) + 1]?.id ?? null, layer: top.layer, head: top.head };
    },
  },
];
export const TOUR_STEPS = STEPS.length;

/** @type {(props: Props) => unknown} */
export function Tour({ state, act }) {
  const step = state.tour ?? 0, { pane, title, text } = STEPS[step];
  const scores = /** @type {import("look/types.js").Scores | undefined} */ (useAnswer(address(`${state.run.id}/heads`)).value);
  const card = useRef(/** @type {HTMLElement | null} */ (null));
  useEffect(() => {
    let wanted = true;
    (async () => {
      const scores = await get(address(`${state.run.id}/heads`)), next = await STEPS[step].show(state, scores);
      if (wanted) act.choose(next);
    })().catch(() => undefined);
    document.querySelectorAll(".pane.highlighted").forEach((one) => one.classList.remove("highlighted"));
    document.getElementById(`pane-${pane}`)?.classList.add("highlighted");
    card.current?.focus();
    return () => {
      wanted = false;
      document.querySelectorAll(".pane.highlighted").forEach((one) => one.classList.remove("highlighted"));
    };
  }, [step]);
  return html`<aside class=${`tour beside-${pane}`} role="dialog" aria-label="guided tour" tabIndex=${-1} ref=${card}>
    <p class="facts">${step + 1} of ${STEPS.length}</p><h2>${title}</h2><p>${text(state, scores)}</p>
    <nav><button class="quiet" onClick=${() => act.choose({ tour: null })}>End</button><span class="space"></span>
      <button disabled=${step === 0} onClick=${() => act.choose({ tour: step - 1 })}>Back</button>
      <button class="main" id="tour-next" onClick=${() => act.choose({ tour: step + 1 < STEPS.length ? step + 1 : null })}>${step + 1 < STEPS.length ? "Next" : "Done"}</button></nav>
  </aside>`;
}
