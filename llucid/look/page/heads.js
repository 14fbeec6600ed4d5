// @ts-check
// The heads: all of them on a wall, one opened large, and the clocks by which RoPE makes its scores.
import { html, useEffect, useMemo, useRef, useState } from "look/vendor/preact.js";
import { address, get, isFile, late, useAnswer, useNumbers } from "look/api.js";
import { change, colours, css, percent, root, short, visible } from "look/colour.js";
import { Legend, Pane, Picture, fit, heat, hideTip, ink, outline, showTip, useSize } from "look/canvas.js";

/** @typedef {import("look/types.js").Props} Props */
/** @typedef {import("look/types.js").Change} Change */
/** @typedef {import("look/types.js").Scores} Scores */
/** @typedef {import("look/types.js").Numbers} Numbers */
/** @typedef {import("look/types.js").Clocks} Clocks */
/** @typedef {import("look/types.js").State} State */

/** What each score means, in words. @type {[keyof Scores, string, string][]} */
export const SCORES = [
  ["induction", "induction", "looks at the token after an earlier copy of this one"],
  ["previous", "previous token", "looks at the token just before"],
  ["first", "first token", "looks at the first token: a place to rest"],
  ["same", "same token", "looks at earlier copies of this token"],
  ["copying", "copying", "what it moves makes the token that it looks at likelier"],
];

/** @type {(changes: Change[], layer: number, head: number) => boolean} */
export const isAblated = (changes, layer, head) =>
  changes.some((change) => change.kind === "ablate" && change.layer === layer && (change.head === head || (change.head === undefined && change.part !== "feed_forward")));

/** @type {(props: Props) => unknown} */
function Wall({ state, act }) {
  const { run, layer, head, sort, dark, full } = state;
  const here = useNumbers((reading, minus) => address(`${reading.id}/attention`, { minus }), state), other = here.difference;
  const scores = /** @type {Scores | undefined} */ (useAnswer(address(`${run.id}/heads`)).value);
  const box = useRef(/** @type {HTMLElement | null} */ (null)), { width, height } = useSize(box);
  /** @type {Numbers | undefined} */
  const value = here.value;
  const [layers, heads, rows, columns] = value?.shape ?? [0, 0, 1, 1];
  const chosen = sort !== "place" ? scores?.[sort] : null;
  const order = useMemo(() => {
    const all = Array.from({ length: layers * heads }, (_, i) => ({ layer: Math.floor(i / heads), head: i % heads, score: 0 }));
    if (chosen) for (const one of all) one.score = chosen[one.layer][one.head];
    return chosen ? all.sort((a, b) => b.score - a.score) : all;
  }, [layers, heads, chosen]);
  const edge = chosen ? 0 : 16;
  /** How many maps a row has, and their pitch: the largest that fits. @type {(label: number) => [number, number]} */
  const fitting = (label) => {
    let best = /** @type {[number, number]} */ ([Math.max(1, heads), 0.5]);
    for (let across = chosen ? 1 : heads; across <= (chosen ? order.length : heads); across++) {
      const pitch = Math.min((width - edge - 2) / across, (height - edge - 2) / Math.ceil(order.length / across) - label);
      if (pitch > best[1]) best = [across, pitch];
    }
    return best;
  };
  const label = (chosen || full) && fitting(12)[1] > 30 ? 12 : 0, [across, pitch] = fitting(label), gap = pitch > 24 ? 4 : pitch > 10 ? 1 : 0.5;
  const sheet = useMemo(() => {
    if (!value || !pitch) return null;
    const canvas = document.createElement("canvas"), map = colours(other ? "diverging" : "sequential", dark);
    canvas.width = heads * columns; // a grid, as no browser paints a strip of more than 32,767 to 65,535 pixels
    canvas.height = layers * rows;
    const pen = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d")), size = rows * columns;
    // All maps in one picture: the wall then only copies parts of it.
    for (let i = 0; i < layers * heads; i++) heat(pen, { data: value.data, rows, columns, start: i * size }, [(i % heads) * columns, Math.floor(i / heads) * rows, columns, rows], map, other ? (x) => 0.5 + x / 2 : root);
    return canvas;
  }, [value, other, dark]);
  const at = (/** @type {number} */ i) => [edge + (i % across) * pitch, edge + Math.floor(i / across) * (pitch + label)];
  const find = (/** @type {number} */ x, /** @type {number} */ y) => {
    const column = Math.floor((x - edge) / pitch), row = Math.floor((y - edge) / (pitch + label));
    return column < 0 || row < 0 || column >= across ? undefined : order[row * across + column];
  };
  return html`<div class=${`wall ${heads > 8 ? "many" : ""}`}><div class="frame" ref=${box}>${here.error && !value && html`<p class="empty">${here.error}</p>`}${value && sheet && html`<${Picture} label=${`attention maps of ${layers} layers with ${heads} heads each; head ${layer}.${head} is chosen`}
    draw=${(/** @type {CanvasRenderingContext2D} */ pen) => {
      pen.imageSmoothingEnabled = columns > pitch * window.devicePixelRatio;
      pen.font = `10px ${ink("sans")}`;
      pen.textBaseline = "middle";
      order.forEach((one, i) => {
        const [x, y] = at(i), side = pitch - gap;
        pen.drawImage(sheet, one.head * columns, one.layer * rows, columns, rows, x, y, side, side);
        pen.strokeStyle = ink("line");
        pen.lineWidth = 1;
        if (side > 20) pen.strokeRect(x - 0.5, y - 0.5, side + 1, side + 1);
        if (isAblated(run.changes, one.layer, one.head)) {
          pen.strokeStyle = ink("accent");
          pen.lineWidth = 1.5;
          pen.beginPath();
          pen.moveTo(x, y);
          pen.lineTo(x + side, y + side);
          pen.moveTo(x + side, y);
          pen.lineTo(x, y + side);
          pen.stroke();
        }
        if (label) {
          pen.fillStyle = ink("muted");
          fit(pen, chosen ? `${one.layer}.${one.head}  ${short(one.score, 2)}` : `${one.layer}.${one.head}`, x, y + side + label / 2 + 1, side);
        }
      });
      const i = order.findIndex((one) => one.layer === layer && one.head === head);
      if (i >= 0) outline(pen, at(i)[0] - 0.5, at(i)[1] - 0.5, pitch - gap + 1, pitch - gap + 1);
      pen.fillStyle = ink("muted");
      if (edge) {
        const [rowStep, columnStep] = [10, 18].map((room) => 2 ** Math.max(0, Math.ceil(Math.log2(room / pitch))));
        for (let l = 0; l < layers; l += rowStep) pen.fillText(String(l), 2, edge + l * (pitch + label) + (pitch - gap) / 2);
        pen.textAlign = "center";
        for (let n = 0; n < heads; n += columnStep) pen.fillText(String(n), edge + n * pitch + (pitch - gap) / 2, 7);
        pen.textAlign = "start";
      }
    }}
    onPoint=${(/** @type {number} */ x, /** @type {number} */ y, /** @type {MouseEvent} */ event) => {
      const one = find(x, y);
      if (!one) return hideTip();
      showTip(event, [`head ${one.layer}.${one.head}${isAblated(run.changes, one.layer, one.head) ? " (ablated)" : ""}`,
        ...SCORES.map(([name, said]) => scores?.[name] && `${said} ${short(scores[name]?.[one.layer][one.head] ?? 0, 3)}`)]);
    }}
    onPick=${(/** @type {number} */ x, /** @type {number} */ y) => { const one = find(x, y); if (one) act.choose({ layer: one.layer, head: one.head, key: null }); }} />`}</div>
    <label class="sort">sort by <select name="sort" value=${sort} onChange=${(/** @type {any} */ event) => act.choose({ sort: event.target.value })}>
      <option value="place">layer and head</option>${SCORES.map(([name, said]) => html`<option value=${name} disabled=${scores && !scores[name]}>${said}</option>`)}</select></label>
  </div>`;
}

/** The chosen token's row of the chosen head's attention, also where the map is coarse. @type {(state: State) => {row: Float32Array | null, missing: string | null}} */
export function useRow({ run, layer, head, token }) {
  const { value: map, error } = useAnswer(address(`${run.id}/attention`, { as: "f32", head, layer }));
  const coarse = map?.pool.some((/** @type {number} */ n) => n > 1), seq = map?.shape[1] ?? 0;
  const { value: fine, fresh, error: more } = useAnswer(coarse ? address(`${run.id}/attention`, { as: "f32", head, layer, position: token }) : null);
  const whole = coarse ? (fresh ? fine : null) : map;
  const row = useMemo(() => (!whole || (!coarse && token >= seq) ? null : coarse ? whole.data : whole.data.subarray(token * seq, (token + 1) * seq)), [whole, coarse, seq, token]);
  return { row, missing: error ?? more };
}

/** The place that the chosen token looks at most. @type {(row: Float32Array | null, token: number) => number} */
function strongest(row, token) {
  let best = row ? 0 : token;
  for (let n = 1; row && n <= token; n++) if (row[n] > row[best]) best = n;
  return best;
}

/** @type {(props: Props) => unknown} */
function Opened({ state, act }) {
  const { run, mine, layer, head, token, dark } = state;
  const here = useNumbers((reading, minus) => address(`${reading.id}/attention`, { as: "f32", head, layer, minus }), state);
  const scores = /** @type {Scores | undefined} */ (useAnswer(address(`${run.id}/heads`)).value);
  /** @type {Numbers | undefined} */
  const value = here.value, difference = here.difference;
  const [rows, columns] = value?.shape ?? [1, 1], exact = !value?.pool.some((n) => n > 1), map = colours(difference ? "diverging" : "sequential", dark);
  const { row } = useRow(state), key = state.key ?? strongest(row, token), of = difference ? (/** @type {number} */ x) => 0.5 + x / 2 : root;
  const looked = value && exact && token < rows ? [...Array(token + 1).keys()].map((n) => ({ n, p: /** @type {Numbers} */ (value).data[token * columns + n] })).sort((a, b) => Math.abs(b.p) - Math.abs(a.p)).slice(0, 4) : [];
  const off = isAblated(run.changes, layer, head), taken = mine.changes.some((one) => one.layer === layer && one.head === head);
  return html`<div class="opened"><header><h3>Where does head ${layer}.${head} look${off ? " (ablated)" : ""}?</h3>
      <p class="how">Rows ask, columns answer.</p>
      ${!isFile && html`<span class="ablate"><button id="ablate-head" aria-pressed=${taken} title="sets what this head writes to 0 (a)"
            onClick=${() => act.toggle({ kind: "ablate", layer, head })}>${taken ? "Restore" : "Ablate"} ${layer}.${head}</button>
          <select aria-label="ablate more of this layer" value="" onChange=${(/** @type {any} */ event) => {
            const part = event.target.value;
            event.target.value = "";
            act.toggle(part === "layer" ? { kind: "ablate", layer } : { kind: "ablate", layer, part });
          }}><option value="">…</option><option value="attention">all heads of layer ${layer}</option><option value="feed_forward">feed-forward ${layer}</option><option value="layer">the whole of layer ${layer}</option></select></span>`}</header>
    <div class=${`columns ${late(here) ? "stale" : ""}`}><div class="frame">${here.error && !value && html`<p class="empty">${here.error}</p>`}${value && html`<${Picture} class="head" label=${`attention of head ${layer}.${head}; from “${visible(run.tokens[token]?.piece ?? "")}” it looks at ${looked.map(({ n, p }) => `“${visible(run.tokens[n].piece)}” ${percent(p)}`).join(", ")}`}
      draw=${(/** @type {CanvasRenderingContext2D} */ pen, /** @type {number} */ w, /** @type {number} */ h) => {
        const side = Math.min(w, h) - 2, u = side / columns, v = side / rows, scale = run.tokens.length / rows;
        heat(pen, { data: /** @type {Numbers} */ (value).data, rows, columns }, [1, 1, side, side], map, of);
        pen.strokeStyle = ink("line");
        pen.lineWidth = 1;
        pen.strokeRect(0.5, 0.5, side + 1, side + 1);
        if (v > 8 && scale === 1) {
          // What comes later is hidden: there is room for the tokens.
          pen.font = `${Math.min(13, 0.85 * v)}px ${ink("sans")}`;
          pen.textBaseline = "middle";
          for (let m = 0; m < rows; m++) {
            pen.fillStyle = ink(m === token ? "accent" : "muted");
            fit(pen, visible(run.tokens[m].piece), 1 + (m + 1) * u + 5, 1 + (m + 0.5) * v, w - (m + 1) * u - 6);
          }
        }
        outline(pen, 1, 1 + Math.floor(token / scale) * v, Math.max(3, (Math.floor(token / scale) + 1) * u), Math.max(3, v));
        pen.strokeStyle = ink("accent");
        pen.beginPath();
        pen.moveTo(1 + (Math.floor(key / scale) + 0.5) * u, 1 + Math.floor(token / scale) * v);
        pen.lineTo(1 + (Math.floor(key / scale) + 0.5) * u, 1);
        pen.stroke();
      }}
      onPoint=${(/** @type {number} */ x, /** @type {number} */ y, /** @type {MouseEvent} */ event) => {
        const box = /** @type {HTMLElement} */ (event.target), side = Math.min(box.clientWidth, box.clientHeight) - 2;
        const m = Math.floor(((y - 1) / side) * rows), n = Math.floor(((x - 1) / side) * columns);
        if (m < 0 || n < 0 || m >= rows || n >= columns) return hideTip();
        const block = /** @type {Numbers} */ (value).pool[0], last = run.tokens.length - 1;
        const named = (/** @type {number} */ i) => (exact ? `“${visible(run.tokens[i]?.piece ?? "")}” (${i})` : `${i * block} to ${Math.min(last, (i + 1) * block - 1)}`);
        showTip(event, [exact ? `${named(m)} looks at ${named(n)}` : `from ${named(m)} at ${named(n)}`,
          n > m ? "which comes later: hidden by the mask" : `p = ${/** @type {Numbers} */ (value).data[m * columns + n].toFixed(4)}${difference ? " more" : ""}`,
          !exact && "the largest of its block: there are more places than pixels"]);
      }}
      onPick=${(/** @type {number} */ x, /** @type {number} */ y, /** @type {MouseEvent} */ event) => {
        const box = /** @type {HTMLElement} */ (event.target), side = Math.min(box.clientWidth, box.clientHeight) - 2, scale = run.tokens.length / rows;
        const m = Math.floor(((y - 1) / side) * rows * scale), n = Math.floor(((x - 1) / side) * columns * scale);
        if (m >= 0 && m < run.tokens.length && n >= 0 && n <= m) act.choose({ token: m, key: n });
      }} />`}</div>
      <div class="side"><ol class="looked" aria-label="where the chosen token looks">${looked.map(({ n, p }) => html`<li><button class="quiet" aria-pressed=${n === key} data-p=${p} onClick=${() => act.choose({ key: n })}>
          <span class="piece">${visible(run.tokens[n].piece)}<sub>${n}</sub></span><span class="number">${difference ? change(p) : percent(p)}</span></button></li>`)}</ol>
        <dl class="scores">${SCORES.map(([name, said, means]) => {
          const score = scores?.[name]?.[layer][head];
          return score === undefined || score === null ? null : html`<div title=${means}><dt>${said}</dt><dd data-score=${name}><span class="meter" style=${{ width: `${Math.max(0, Math.min(1, score)) * 28}px` }}></span>${short(score, 2)}</dd></div>`;
        })}</dl>
      </div></div>
  </div>`;
}

/** The score of a query and a key, pair by pair, from what `attend` computed last. @type {(state: State, key: number) => Promise<Clocks>} */
async function clocksFrom({ run, info, layer, head, token }, key) {
  const { heads, kv_heads, head_dim } = info.models[run.model].config;
  /** @type {import("look/types.js").Names} */
  const names = await get(address(`${run.id}/names`));
  const last = (/** @type {string} */ start) => names.values.filter((one) => one.name === start || (one.name.startsWith(`${start}.`) && /^\d+$/.test(one.name.slice(start.length + 1)))).at(-1)?.name;
  const ask = (/** @type {string} */ name, /** @type {string | null} */ slice) => get(address(`${run.id}/value`, { as: "f32", name: last(name), slice }));
  const group = heads / kv_heads, kv = Math.floor(head / group), of = `0,${kv},${head % group}`, at = `blocks.${layer}.attention`;
  /** @type {Numbers[]} */
  const [q, k, scores, theta] = await Promise.all([ask(`${at}.attention_written_out.q`, of), ask(`${at}.attend.k`, `0,${kv}`), ask(`${at}.scores`, of), ask("theta", null)]);
  if ([q, k, scores].some((one) => one.pool.some((n) => n > 1))) throw new Error("too coarse");
  const pairs = [...theta.data].map((frequency, j) => {
    const [m, n] = [token * head_dim + 2 * j, key * head_dim + 2 * j];
    return { frequency, value: q.data[m] * k.data[n] + q.data[m + 1] * k.data[n + 1] };
  });
  const score = pairs.reduce((sum, pair) => sum + pair.value, 0), most = pairs.reduce((sum, pair) => sum + Math.abs(pair.value), 0);
  if (key <= token && Math.abs(score - scores.data[token * run.tokens.length + key]) > 0.01 * most) throw new Error("made in another way");
  return { pairs, score };
}

/** @type {(props: Props) => unknown} */
function ClocksOf({ state, act }) {
  const { run, layer, head, token, dark } = state;
  const { row, missing } = useRow(state), key = state.key ?? (row ? strongest(row, token) : null);
  const { value, fresh, error } = useAnswer(key === null ? null : address(`${run.id}/clocks`, { head, key, layer, position: token }));
  const [counted, count] = useState(/** @type {Clocks | null} */ (null));
  useEffect(() => {
    let wanted = true;
    count(null);
    // A file holds the clocks of few scores, but the queries and keys of all.
    if (error && key !== null) clocksFrom(state, key).then((clocks) => wanted && count(clocks), () => undefined);
    return () => { wanted = false; };
  }, [error, run, layer, head, token, key]);
  /** @type {Clocks | undefined} */
  const clocks = error ? (counted ?? undefined) : value;
  const far = token - (key ?? 0), most = Math.max(...(clocks?.pairs.map((pair) => Math.abs(pair.value)) ?? []), 1e-9);
  const silent = (/** @type {number} */ pair) => run.changes.some((one) => one.kind === "zero_frequency" && one.pair === pair);
  return html`<div class="clocks"><header><h3>Which clocks made this score?</h3>
      ${key !== null && html`<p class="how">“${visible(run.tokens[token]?.piece ?? "")}” asks “${visible(run.tokens[key]?.piece ?? "")}”, ${far} back: each pair’s hand has turned ${far}·θ; colour is what it adds${state.full === "heads" ? "; below, in how many places it turns once" : ""}.</p>`}</header>
    ${(missing ?? error) && !clocks && html`<p class="empty">${missing ?? error}</p>`}
    <div class=${`faces ${fresh || counted ? "" : "stale"}`}>${clocks?.pairs.map((pair, j) => {
      const angle = far * pair.frequency, t = 0.5 + pair.value / most / 2, colour = css(colours("diverging", dark), t);
      return html`<button key=${j} class=${`face ${silent(j) ? "silent" : ""}`} data-value=${pair.value} disabled=${isFile} aria-label=${`pair ${j} adds ${short(pair.value)}`}
        onClick=${() => act.toggle({ kind: "zero_frequency", pair: j })}
        onMouseMove=${(/** @type {MouseEvent} */ event) => showTip(event, [`pair ${j}: adds ${short(pair.value)} to the score`, `turns ${short(pair.frequency)} radians a place: once in ${short((2 * Math.PI) / pair.frequency)} places`,
          `over ${far} places: ${short(angle / (2 * Math.PI))} turns`, !isFile && (silent(j) ? "click: lets it turn again" : "click: stops this clock everywhere")])} onMouseLeave=${hideTip}>
        <svg viewBox="-10 -10 20 20" aria-hidden="true"><circle r="9" style=${{ fill: colour }} /><line x1="0" y1="0" x2="0" y2="-8.5" class="zero" /><line x1="0" y1="0" x2=${8.2 * Math.sin(angle)} y2=${-8.2 * Math.cos(angle)} class="hand" /></svg>${state.full === "heads" && html`<small>${pair.frequency > 0 ? Math.round((2 * Math.PI) / pair.frequency).toLocaleString("en") : "∞"}</small>`}</button>`;
    })}</div>
    ${clocks && html`<p class="facts"><span>score <b id="score">${short(clocks.score, 5)}</b></span><${Legend} kind="diverging" dark=${dark} from=${-most} to=${`+${short(most, 2)}`} /></p>`}
  </div>`;
}

/** @type {(props: Props) => unknown} */
export function HeadsPane({ state, act }) {
  const difference = state.view === "difference" && state.beside;
  return html`<${Pane} name="heads" number=${4} state=${state} act=${act} title=${difference ? "Which heads look elsewhere now?" : "What does each head look at?"}
    how="A picture a head: rows are layers. Click one to open it; a takes it out, and everything shows what changes."
    tools=${difference ? html`<${Legend} kind="diverging" dark=${state.dark} from="−1" to="+1" />` : html`<${Legend} kind="sequential" dark=${state.dark} from="0" to="1" title="p" />`}>
    <${Wall} state=${state} act=${act} /><${Opened} state=${state} act=${act} /><${ClocksOf} state=${state} act=${act} />
  </${Pane}>`;
}
