// @ts-check
// The page: what is chosen is kept here, and given to all panes.
import { html, render, useEffect, useMemo, useRef, useState } from "look/vendor/preact.js";
import { address, edit, get, home, isFile, keptState, read } from "look/api.js";
import { Bar } from "look/bar.js";
import { hideTip } from "look/canvas.js";
import { CodePane } from "look/code.js";
import { HeadsPane } from "look/heads.js";
import { StreamPane } from "look/stream.js";
import { TextPane } from "look/text.js";
import { Tour } from "look/tour.js";

/** @typedef {import("look/types.js").State} State */
/** @typedef {import("look/types.js").Reading} Reading */
/** @typedef {import("look/types.js").Change} Change */
/** @typedef {import("look/types.js").Actions} Actions */

/** @type {[string, string][]} */
const KEYS = [
  ["← →", "token"], ["↑ ↓", "layer"], ["[ ]", "head"], ["n p", "next and last line of the code"], ["x", "next expression of the line"], ["space", "step by itself"],
  ["a", "ablate the head, or restore it"], ["u", "undo all changes"], ["d", "this run, the other, the difference"], ["g", "draw a token and go on"],
  ["e", "edit the text"], ["2 3 4", "enlarge a pane"], ["Esc", "all panes"], ["t", "tour"], ["l", "light or dark"], ["?", "these keys"],
];

/** What the panes show: if the other run is chosen, that as `run`, and this one beside it. @type {(state: State) => State} */
const shown = (state) => (state.view === "beside" && state.beside ? { ...state, run: state.beside, beside: state.run } : state);

/** @type {(state: State, run: Reading) => import("look/types.js").Config} */
const config = ({ info }, run) => info.models[run.model].config;

/** @typedef {{what: {text: string} | {ids: number[]} | {of: string}, model: number, changes: Change[], compare: number | null}} Asked */

/** @type {(run: Reading) => string} */
const ids = (run) => `${run.tokens.map((one) => one.id)}`;

/** What was asked for to get what is shown. @type {(state: State) => Asked} */
const askedFor = ({ run, compare }) => ({ what: { of: run.id }, model: run.model, changes: run.changes, compare });

/** @type {(state: State) => State} with choices that exist */
function within(state) {
  const view = state.beside ? state.view : "run", last = state.run.tokens.length - 1;
  const { layers, heads, vocab_size } = config(state, shown({ ...state, view }).run);
  const clamp = (/** @type {number} */ n, /** @type {number} */ most) => Math.max(0, Math.min(most, n));
  const token = clamp(state.token, last);
  return { ...state, view, mine: state.run, token, layer: clamp(state.layer, layers - 1), head: clamp(state.head, heads - 1), key: state.key !== null && state.key <= token ? state.key : null, target: state.target !== null && state.target < vocab_size ? state.target : null };
}

/** The induction head if there is one, at the end of the text. @type {(run: Reading) => Promise<{layer: number, head: number}>} */
async function opening(run) {
  /** @type {import("look/types.js").Scores} */
  const scores = await get(address(`${run.id}/heads`));
  const grid = scores.induction ?? scores.previous;
  let layer = 0, head = 0;
  grid?.forEach((row, l) => row.forEach((score, h) => { if (score > grid[layer][head]) [layer, head] = [l, h]; }));
  return { layer, head };
}

/** @type {(props: {first: State}) => unknown} */
function App({ first }) {
  const [state, set] = useState(() => within(first));
  const latest = useRef(state), turn = useRef(0), asked = useRef(askedFor(state));
  latest.current = state;
  const act = useMemo(() => {
    const choose = (/** @type {Partial<State>} */ next) => {
      if (next.run) asked.current = askedFor({ ...latest.current, ...next });
      set((last) => within({ ...last, ...next }));
    };
    /** Reads what is asked for by now, with this instead of the last; what is chosen then depends on the run. @type {(next: Partial<Asked>, choice?: (run: Reading) => Partial<State>) => Promise<void>} */
    const ask = async (next, choice = () => ({})) => {
      asked.current = { ...asked.current, ...next };
      const mine = ++turn.current, { what, model, changes, compare } = asked.current;
      choose({ busy: true, error: null });
      try {
        const base = await read(what, model), run = changes.length ? await edit(base.id, changes) : base;
        const beside = compare !== null && compare !== model ? await read({ of: base.id }, compare) : changes.length ? base : null;
        if (beside && ids(beside) !== ids(base)) throw new Error("the two models have different tokenizers, so that their tokens cannot be compared");
        if (mine === turn.current) choose({ run, beside, compare, busy: false, ...choice(run) });
      } catch (problem) {
        if (mine !== turn.current) return;
        asked.current = askedFor(latest.current);
        choose({ busy: false, error: /** @type {Error} */ (problem).message });
      }
    };
    const atEnd = (/** @type {Reading} */ run) => ({ token: run.tokens.length - 1, key: null, target: null });
    /** @type {Actions} */
    const actions = {
      choose,
      type: (text) => ask({ what: { text } }, atEnd),
      goOn: (tokens) => ask({ what: { ids: tokens } }, atEnd),
      toggle: (change) => {
        const { changes } = asked.current, same = (/** @type {Change} */ one) => JSON.stringify(one) === JSON.stringify(change);
        return ask({ changes: changes.some(same) ? changes.filter((one) => !same(one)) : [...changes, change] });
      },
      undo: () => ask({ changes: [] }),
      models: (next) => ask(next, () => ("model" in next ? { target: null } : {})),
    };
    return actions;
  }, []);
  useEffect(() => { document.documentElement.dataset.theme = state.dark ? "dark" : "light"; set((last) => ({ ...last })); }, [state.dark]);
  useEffect(() => {
    const listen = (/** @type {KeyboardEvent} */ event) => {
      hideTip();
      const now = latest.current, focus = /** @type {HTMLElement} */ (event.target);
      if (event.key === "Escape") {
        if (/TEXTAREA|INPUT|SELECT/.test(focus.tagName)) focus.blur();
        return act.choose({ full: null, help: false, ...(now.full || now.help ? {} : { tour: null }) });
      }
      if (event.ctrlKey || event.metaKey || event.altKey || /TEXTAREA|INPUT|SELECT/.test(focus.tagName)) return;
      const { layer, head, token, view, beside } = now, { heads } = config(now, shown(now).run);
      /** @type {Record<string, () => void>} */
      const does = {
        ArrowLeft: () => act.choose({ token: token - 1, key: null }), ArrowRight: () => act.choose({ token: token + 1, key: null }),
        ArrowUp: () => act.choose({ layer: layer - 1 }), ArrowDown: () => act.choose({ layer: layer + 1 }),
        "[": () => act.choose({ head: (head + heads - 1) % heads, key: null }), "]": () => act.choose({ head: (head + 1) % heads, key: null }),
        n: () => window.dispatchEvent(new CustomEvent("look-step", { detail: 1 })), p: () => window.dispatchEvent(new CustomEvent("look-step", { detail: -1 })),
        x: () => window.dispatchEvent(new CustomEvent("look-step", { detail: 0 })),
        " ": () => act.choose({ playing: !now.playing }),
        a: () => { if (!isFile) act.toggle({ kind: "ablate", layer, head }); }, u: () => { if (!isFile) act.undo(); },
        d: () => { if (beside) act.choose({ view: view === "run" ? "beside" : view === "beside" ? "difference" : "run" }); },
        g: () => document.getElementById("draw")?.click(), e: () => document.getElementById("prompt")?.focus(),
        2: () => act.choose({ full: now.full === "code" ? null : "code" }), 3: () => act.choose({ full: now.full === "stream" ? null : "stream" }),
        4: () => act.choose({ full: now.full === "heads" ? null : "heads" }), 0: () => act.choose({ full: null }), 1: () => act.choose({ full: null }),
        t: () => act.choose({ tour: 0 }), l: () => act.choose({ dark: !now.dark }), "?": () => act.choose({ help: !now.help }),
      };
      if (event.key === " " && focus.tagName === "BUTTON") return;
      if (does[event.key]) {
        event.preventDefault();
        does[event.key]();
      }
    };
    window.addEventListener("keydown", listen);
    return () => window.removeEventListener("keydown", listen);
  }, []);
  const text = shown(state), [size, other] = [text.run, text.beside ?? text.run].map((run) => {
    const { dim, layers, heads, kv_heads, head_dim, ffn_dim } = config(state, run);
    return `${[dim, layers, heads, kv_heads, head_dim, ffn_dim]}`;
  });
  // Only the text's numbers have a difference between models of different sizes, and what was asked of one is none of the other's.
  const sizes = `${size}, ${other}`, inside = { state: size === other ? text : { ...text, beside: null }, act };
  return html`<${Bar} state=${state} act=${act} /><main class=${state.full ? "one" : "all"}>
      <${TextPane} state=${text} act=${act} /><${CodePane} key=${`code ${sizes}`} ...${inside} /><${StreamPane} key=${`stream ${sizes}`} ...${inside} /><${HeadsPane} key=${`heads ${sizes}`} ...${inside} /></main>
    ${state.tour !== null && html`<${Tour} state=${state} act=${act} />`}
    ${state.help && html`<aside class="help" role="dialog" aria-label="keys"><h2>Keys</h2><dl>${KEYS.map(([key, does]) => html`<div><dt>${key.split(" ").map((one) => html`<kbd>${one}</kbd> `)}</dt><dd>${does}</dd></div>`)}</dl></aside>`}`;
}

async function start() {
  const root = /** @type {HTMLElement} */ (document.getElementById("app"));
  try {
    const info = await home;
    /** @type {Reading} */
    const run = await get(address(info.first));
    const dark = window.matchMedia("(prefers-color-scheme: dark)").matches;
    document.documentElement.dataset.theme = dark ? "dark" : "light";
    const other = info.readings?.find((id) => id !== run.id);
    /** @type {Reading | null} */
    const beside = other ? await get(address(other)) : null;
    /** @type {import("look/types.js").Source} */
    const source = await get(address("source"));
    const site = source.sites.findIndex((one) => one.kind === "variable" && one.text === "p");
    /** @type {State} */
    const first = {
      info, run, beside, mine: run, compare: null, busy: false, error: null, tour: info.tour ? 0 : null, help: false, dark, playing: false,
      token: run.tokens.length - 1, ...(await opening(run)), key: null, spot: site < 0 ? null : { site, nth: 0 }, target: null,
      sampling: { temperature: 1, top_k: 0, top_p: 1, min_p: 0 }, view: "run", full: null, sort: "place", ...keptState,
    };
    document.title = `${info.models[0].name}: llucid look`;
    root.replaceChildren();
    render(html`<${App} first=${first} />`, root);
    document.documentElement.dataset.ready = "yes";
  } catch (problem) {
    root.textContent = /** @type {Error} */ (problem).message;
  }
}
start();
