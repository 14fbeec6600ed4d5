// @ts-check
// The text: what is read, how surprising each token was, and what may come next.
import { html, useEffect, useLayoutEffect, useMemo, useRef, useState } from "look/vendor/preact.js";
import { address, answered, isFile, late, useAnswer } from "look/api.js";
import { change, colours, css, ink, percent, short, visible } from "look/colour.js";
import { Legend, Pane, hideTip, showTip } from "look/canvas.js";
import { useRow } from "look/heads.js";
import { draw, entropy, ranking, sample } from "look/sampling.js";

/** @typedef {import("look/types.js").Props} Props */
/** @typedef {import("look/types.js").Token} Token */

/** This many nats have the strongest colour: one chance in about 3000. */
const MOST = 8;

/** @type {(nats: number | null) => number} */
const shade = (nats) => (nats === null ? 0 : Math.min(1, nats / MOST));

/** @type {(props: Props) => unknown} */
function Editor({ state, act }) {
  const { mine: run, info } = state, words = info.models[run.model].has_tokenizer;
  const shown = words ? (run.text ?? "") : run.tokens.map((token) => token.id).join(" ");
  const [draft, write] = useState(/** @type {string | null} */ (null));
  const waiting = useRef(0);
  useEffect(() => () => clearTimeout(waiting.current), []);
  const send = (/** @type {string} */ text) => (words ? act.type(text) : act.goOn(text.split(/[\s,]+/).filter(Boolean).map(Number)));
  return html`<textarea id="prompt" rows="2" spellcheck=${false} aria-label=${words ? "the text; type to change it" : "the ids of the tokens; type to change them"}
    readOnly=${isFile} placeholder=${words ? "Type a text" : "Ids of tokens"} value=${draft ?? shown}
    onInput=${(/** @type {any} */ event) => {
      const text = event.target.value;
      write(text);
      clearTimeout(waiting.current);
      waiting.current = window.setTimeout(() => send(text), 250);
    }}
    onBlur=${() => write(null)} />`;
}

/** The lines from the chosen token to those that the chosen head looks at. @param {Props & {chips: {current: HTMLElement | null}}} props */
function Arcs({ state, chips }) {
  const { run, layer, head, token, key } = state, { row } = useRow(state);
  const { fresh } = useAnswer(address(`${run.id}/attention`, { as: "f32", head, layer }));
  const [lines, draw] = useState(/** @type {{path: string, p: number, chosen: boolean}[]} */ ([]));
  const [box, resize] = useState([0, 0]);
  useLayoutEffect(() => {
    const element = chips.current;
    if (!element) return;
    const place = () => {
      resize([element.scrollWidth, element.scrollHeight]);
      const buttons = /** @type {HTMLElement[]} */ ([...element.querySelectorAll(".chip")]), from = buttons[token];
      if (!from || !row) return draw([]);
      const top = (/** @type {HTMLElement} */ chip) => [chip.offsetLeft + chip.offsetWidth / 2, chip.offsetTop + 1];
      const [x, y] = top(from), found = [];
      for (let n = 0; n <= token; n++) {
        const p = row[n];
        if ((p < 0.02 && n !== key) || !buttons[n]) continue;
        const [u, v] = top(buttons[n]), rise = Math.min(26, 7 + Math.abs(x - u) / 14);
        const below = buttons[n].offsetTop + buttons[n].offsetHeight;
        const path = n === token ? `M${x - 4} ${y} c-5 -11 13 -11 8 0` : v === y ? `M${x} ${y} C${x} ${y - rise} ${u} ${y - rise} ${u} ${v}` : `M${x} ${y} C${x} ${y - 16} ${u} ${below + 18} ${u} ${below}`;
        found.push({ path, p, chosen: n === key });
      }
      draw(found);
    };
    place();
    const watch = new ResizeObserver(place);
    watch.observe(element);
    return () => watch.disconnect();
  }, [row, token, key, run]);
  return html`<svg class=${`arcs ${fresh ? "" : "stale"}`} width=${box[0]} height=${box[1]} aria-hidden="true">
    ${lines.map((line) => html`<path d=${line.path} class=${line.chosen ? "chosen" : ""} stroke-width=${0.8 + 3 * line.p} opacity=${0.2 + 0.7 * line.p} />`)}
  </svg>`;
}

/** @type {(props: Props) => unknown} */
function Chips({ state, act }) {
  const { run, beside, mine, view, token, dark } = state;
  const box = useRef(/** @type {HTMLElement | null} */ (null));
  const kl = useAnswer(beside && address(`${mine.id}/compare`, { with: mine === run ? beside.id : run.id })).value?.kl;
  const difference = view === "difference" && beside, other = beside?.tokens;
  const map = colours(difference ? "diverging" : "sequential", dark);
  useEffect(() => {
    box.current?.querySelectorAll(".chip")[token]?.scrollIntoView({ block: "nearest" });
  }, [token]);
  return html`<div class="chips" ref=${box} role="listbox" aria-label="the tokens of the text, shaded by surprise">
    ${run.tokens.map((one, place) => {
      const changed = (one.surprise ?? 0) - (other?.[place]?.surprise ?? one.surprise ?? 0);
      const t = difference ? 0.5 + Math.max(-0.5, Math.min(0.5, changed / 4)) : shade(one.surprise);
      const lines = [
        `“${visible(one.piece)}”  id ${one.id}, place ${place}`,
        one.surprise === null ? "nothing stands before it" : `surprise ${short(one.surprise)} nats: p = ${percent(Math.exp(-one.surprise))}`,
        one.rank !== null && `the model's guess number ${one.rank + 1}`,
        `what follows has ${short(one.entropy)} nats of entropy`,
        other?.[place] && one.surprise !== null && `${mine === run ? "beside it" : "this run"}: ${short(other[place].surprise ?? 0)} nats`,
        kl?.[place] !== undefined && `what follows differs by ${short(kl[place])} nats (KL divergence)`,
      ];
      return html`<button key=${place} class="chip" role="option" data-place=${place} aria-selected=${place === token} tabIndex=${place === token ? 0 : -1}
        style=${{ background: css(map, t), color: ink(map, t) }}
        onClick=${() => act.choose({ token: place, key: null })} onMouseMove=${(/** @type {MouseEvent} */ event) => showTip(event, lines)} onMouseLeave=${hideTip}
        >${visible(one.piece)}</button>${one.piece.endsWith("\n") && html`<br />`}`;
    })}
    <${Arcs} state=${state} chips=${box} />
  </div>`;
}

/** @type {[keyof import("look/types.js").Sampling, string, number, number, number, string][]} */
const SLIDERS = [
  ["temperature", "temperature", 0, 2, 0.05, "divides the logits: below 1 the likely become likelier"],
  ["top_k", "top-k", 0, 50, 1, "keeps the k likeliest; 0 keeps all"],
  ["top_p", "top-p", 0.05, 1, 0.01, "keeps the likeliest up to this much probability"],
  ["min_p", "min-p", 0, 0.5, 0.01, "keeps what is at least so likely, as a share of the likeliest"],
];

/**
 * The distribution after a place: ids from the likeliest, their pieces, and probabilities with and without the filters.
 * @param {import("look/types.js").Reading | null} reading
 * @param {number} place
 * @param {import("look/types.js").Sampling} sampling
 * @param {number} vocabulary
 */
function useDistribution(reading, place, sampling, vocabulary) {
  const next = useAnswer(reading && address(`${reading.id}/next`, { position: place }));
  const row = useAnswer(reading && address(`${reading.id}/value`, { as: "f32", max: vocabulary, name: reading.scores, slice: `0,${place}` }));
  const shown = useMemo(() => {
    if (!next.value) return null;
    /** @type {import("look/types.js").Next} */
    const { tokens, log_sum } = next.value;
    // Without the whole row (an exported file of a large model), only the likeliest are filtered.
    const whole = row.value && row.fresh && !row.value.pool.some((/** @type {number} */ n) => n > 1) ? row.value.data : null;
    const logits = whole ?? Float32Array.from(tokens, (token) => token.logit);
    const order = whole ? ranking(whole) : Uint32Array.from(tokens.keys());
    const sampled = sample(logits, order, sampling), kept = sampled.kept;
    // Of the likeliest alone, the sum of all is only known while nothing is changed.
    const atRest = !whole && sampling.temperature === 1 && !sampling.top_k && sampling.top_p === 1 && !sampling.min_p;
    const p = atRest ? Float64Array.from(tokens, (token) => Math.exp(token.logit - log_sum)) : sampled.p;
    const row_of = (/** @type {import("look/types.js").Next["tokens"][0]} */ token, /** @type {number} */ logit, /** @type {number} */ i) => ({ ...token, logit, raw: Math.exp(logit - log_sum), p: p[i] ?? 0 });
    const rows = tokens.map((token, i) => row_of(token, token.logit, whole ? token.id : i));
    const known = new Map(rows.map((row) => [row.id, row]));
    // Also of a token that is not among the likeliest, if the whole row is known.
    const at = (/** @type {typeof tokens[0]} */ token) => known.get(token.id) ?? (whole && token.id < whole.length ? row_of(token, whole[token.id], token.id) : null);
    const drawn = () => {
      const found = draw(sampled.p, order, kept, Math.random());
      return whole ? found : tokens[found].id;
    };
    return { rows, at, kept, drawn, entropy: (atRest && reading?.tokens[place]?.entropy) || entropy(p), whole: whole !== null };
  }, [next.value, next.fresh, row.value, row.fresh, sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p]);
  return { shown: shown && { ...shown, stale: late(next, row) }, error: next.error };
}

/** @type {(props: Props) => unknown} */
function Distribution({ state, act }) {
  const { run, beside, mine, view, token, sampling, target } = state;
  const { vocab_size } = state.info.models[run.model].config;
  const { shown, error } = useDistribution(run, token, sampling, vocab_size);
  const other = useDistribution(beside, token, sampling, vocab_size).shown;
  const before = run.tokens.slice(0, token + 1), follows = run.tokens[token + 1];
  // Not while the page still reads, or shows what follows another place.
  const goOn = (/** @type {number} */ id) => state.busy || shown?.stale || act.goOn([...before.map((one) => one.id), id]);
  const drawOne = () => shown && goOn(shown.drawn());
  let rows = (shown?.rows ?? []).slice(0, 10);
  if (view === "difference" && other && shown) {
    const every = new Map([...shown.rows, ...other.rows].map((row) => [row.id, shown.at(row)]));
    const gap = (/** @type {typeof rows[0]} */ row) => Math.abs(row.p - (other.at(row)?.p ?? 0));
    rows = [...every.values()].flatMap((row) => row ?? []).sort((a, b) => gap(b) - gap(a)).slice(0, 10);
  }
  return html`<div class="next">
    <header><h3>What comes after “${visible(run.tokens[token]?.piece ?? "")}”?</h3>${!isFile && html`<button onClick=${drawOne} title="draws one token and goes on (g)" id="draw">Draw one</button>`}
      <p class="how">${beside ? "Hollow bars: the other run" : "Ticks: before the sliders"}. Click one to go on from there.</p></header>
    <div class="columns">
      <ol class=${`bars ${shown?.stale || other?.stale ? "stale" : ""}`} aria-label="the likeliest next tokens">${rows.map((row) => {
        const also = other?.at(row), apart = answered(address(`${run.id}/parts`, { position: token, token: row.id }));
        return html`<li key=${row.id}><button class=${`bar ${row.p === 0 ? "dropped" : ""}`} data-id=${row.id} data-p=${row.p} disabled=${isFile}
          aria-label=${`${visible(row.piece)}, ${percent(row.p)}`} onClick=${() => goOn(row.id)}
          onMouseMove=${(/** @type {MouseEvent} */ event) => showTip(event, [
            `“${visible(row.piece)}”  id ${row.id}`, `p = ${row.p.toFixed(4)} with these settings`, `p = ${row.raw.toFixed(4)} as the model says`,
            `logit ${row.logit.toFixed(4)}`, also && `p = ${also.p.toFixed(4)} ${mine === run ? "in the run beside it" : "in this run"}`,
          ])} onMouseLeave=${hideTip}>
          <span class="piece">${visible(row.piece)}${follows?.id === row.id && html`<i title="the text goes on with this one">●</i>`}</span>
          <span class="track"><span class="fill" style=${{ width: `${100 * row.p}%` }}></span>
            ${also && html`<span class="ghost" style=${{ width: `${100 * also.p}%` }}></span>`}
            <span class="tick" style=${{ left: `${100 * row.raw}%` }}></span></span>
          <span class="number">${view === "difference" && also ? change(row.p - also.p) : percent(row.p)}</span>
        </button><button class="quiet why" aria-pressed=${target === row.id} disabled=${!apart} title=${apart ? "what wrote this token's logit?" : "llucid look shows live what wrote this token's logit"} aria-label=${`take the logit of ${visible(row.piece)} apart`}
          onClick=${() => act.choose({ target: target === row.id ? null : row.id })}>?</button></li>`;
      })}${error && html`<p class="empty">${error}</p>`}</ol>
      <div class="sliders">${SLIDERS.map(([name, label, min, max, step, help]) => html`<label key=${name} title=${help}><span>${label}</span><output>${sampling[name]}</output>
        <input type="range" name=${name} min=${min} max=${max} step=${step} value=${sampling[name]}
          onInput=${(/** @type {any} */ event) => act.choose({ sampling: { ...sampling, [name]: Number(event.target.value) } })} /></label>`)}
        <p class="facts">${shown && html`<span title="how many tokens are left, and the entropy of their distribution">${shown.kept.toLocaleString("en")} left${shown.whole ? "" : " of the likeliest"}, ${short(shown.entropy, 2)} nats</span>`}</p>
      </div>
    </div>
  </div>`;
}

/** @type {(props: Props) => unknown} */
export function TextPane({ state, act }) {
  const { run, beside, view, dark, layer, head } = state, difference = view === "difference" && beside;
  const measured = run.tokens.filter((one) => one.surprise !== null);
  const mean = measured.reduce((sum, one) => sum + (one.surprise ?? 0), 0) / (measured.length || 1);
  return html`<${Pane} name="text" number=${1} state=${state} act=${act} title=${difference ? "Which tokens became more surprising?" : "How surprised was the model by each token?"}
    how=${html`${difference ? "Brown: more surprising than in the other run; blue: less" : "The stronger its colour, the less likely a token was (−ln p)"}; lines show where head ${layer}.${head} looks from the chosen token.
      ${measured.length ? html` Mean ${short(mean)} nats.` : ""}`}
    tools=${difference ? html`<${Legend} kind="diverging" dark=${dark} from="−2" to="+2 nats" />` : html`<${Legend} kind="sequential" dark=${dark} from="0" to="8 nats" />`}>
    <div class="reading"><${Editor} state=${state} act=${act} /><${Chips} state=${state} act=${act} /></div>
    <${Distribution} state=${state} act=${act} />
  </${Pane}>`;
}
