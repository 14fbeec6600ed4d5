// @ts-check
// The bar above the panes: which model, what was changed, what it is compared with, and a training run's snapshots.
import { html, useEffect, useState } from "look/vendor/preact.js";
import { address, exportPage, get, isFile, leftOut, read, useAnswer } from "look/api.js";
import { Picture, ink } from "look/canvas.js";
import { short, size } from "look/colour.js";

/** @typedef {import("look/types.js").Props} Props */
/** @typedef {import("look/types.js").Change} Change */

/** @type {(change: Change) => string} */
export function changeName(change) {
  const { kind, layer, head, part, pair, name, factor } = change;
  if (kind === "zero_frequency") return `clock ${pair} stopped`;
  if (kind === "scale") return `${name} × ${factor}`;
  if (kind === "patch") return `${name} patched`;
  if (kind === "code") return `${name} changed`;
  return `without ${head !== undefined ? `head ${layer}.${head}` : part === "attention" ? `attention ${layer}` : part === "feed_forward" ? `feed-forward ${layer}` : `layer ${layer}`}`;
}

/** Names of changes that are shown; of more, how many. */
const NAMED = 12;

/** @type {(bytes: Blob, name: string) => void} */
function save(bytes, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(bytes);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

/** A training run over time: a slider over its snapshots, and when a head began to look as an induction head does. @type {(props: Props) => unknown} */
function Training({ state, act }) {
  const { info, run } = state, snapshots = isFile ? [] : info.models.map((model, index) => ({ ...model, index })).filter((model) => model.snapshot !== null);
  const [best, found] = useState(/** @type {Record<number, number>} */ ({}));
  const ids = run.tokens.map((token) => token.id).join(","), [playing, play] = useState(false);
  const here = snapshots.findIndex((model) => model.index === run.model);
  useEffect(() => {
    let wanted = true;
    found({});
    (async () => {
      for (const { index } of snapshots) {
        const reading = await read({ of: run.id }, index), scores = await get(address(`${reading.id}/heads`));
        if (!wanted) return;
        if (scores.induction) found((last) => ({ ...last, [index]: Math.max(...scores.induction.flat()) }));
      }
    })().catch(() => undefined);
    return () => { wanted = false; };
  }, [ids]);
  useEffect(() => {
    if (!playing) return;
    const timer = setTimeout(() => act.models({ model: snapshots[(here + 1) % snapshots.length].index }), 1200);
    return () => clearTimeout(timer);
  }, [playing, here]);
  if (!snapshots.length) return null;
  const step = here >= 0 ? snapshots[here].snapshot : null;
  const known = snapshots.map(({ index }) => best[index]), said = step === null ? "after training" : `step ${step}`;
  return html`<section class="training" aria-labelledby="title-training"><h2 id="title-training">When did an induction head form?</h2>
    <p class="how">The line is the highest induction score of a head on this text; drag to read it with an earlier snapshot.</p>
    <button class="quiet" aria-label="play the training run" aria-pressed=${playing} onClick=${() => play(!playing)}>${playing ? "❚❚" : "▶"}</button>
    <span class="over"><${Picture} class="curve" label=${`the highest induction score of a head, snapshot by snapshot: ${known.map((score) => (score === undefined ? "unknown" : short(score, 2))).join(", ")}`}
      draw=${(/** @type {CanvasRenderingContext2D} */ pen, /** @type {number} */ w, /** @type {number} */ h) => {
        const at = (/** @type {number} */ i) => 8 + ((w - 16) * i) / Math.max(1, snapshots.length - 1), up = (/** @type {number} */ score) => h - 3 - (h - 6) * Math.min(1, score);
        pen.strokeStyle = ink("data");
        pen.lineWidth = 1.5;
        pen.beginPath();
        known.forEach((score, i) => score !== undefined && pen.lineTo(at(i), up(score)));
        pen.stroke();
        known.forEach((score, i) => {
          if (score === undefined) return;
          pen.fillStyle = ink(i === here ? "accent" : "data");
          pen.beginPath();
          pen.arc(at(i), up(score), i === here ? 4 : 2.5, 0, 7);
          pen.fill();
        });
      }} />
      <input type="range" name="snapshot" aria-label="the training run's snapshot" aria-valuetext=${said} min="0" max=${snapshots.length - 1} value=${here < 0 ? snapshots.length - 1 : here}
        onChange=${(/** @type {any} */ event) => act.models({ model: snapshots[Number(event.target.value)].index })} /></span>
    <span class="facts now">${said}${best[run.model] !== undefined ? `: induction ${short(best[run.model], 2)}` : ""}</span></section>`;
}

/** @type {(props: Props) => unknown} */
export function Bar({ state, act }) {
  const { info, run, beside, view, dark, busy, error, compare } = state, model = info.models[run.model];
  const [saving, note] = useState("");
  const kl = useAnswer(beside && address(`${run.id}/compare`, { with: beside.id })).value?.kl;
  const mean = kl?.length ? kl.reduce((/** @type {number} */ a, /** @type {number} */ b) => a + b, 0) / kl.length : null;
  const plain = info.models.map((one, index) => ({ ...one, index })).filter((one) => one.snapshot === null);
  const many = info.models.length > 1;
  const other = beside && (beside.model !== run.model ? modelName(info.models[beside.model]) : "the unchanged run");
  return html`<header class="top">
    <h1><span class="mark" aria-hidden="true"></span>llucid <em>look</em></h1>
    ${many && !isFile ? html`<select name="model" aria-label="model" value=${run.model} onChange=${(/** @type {any} */ event) => act.models({ model: Number(event.target.value) })}>
      ${info.models.map((one, i) => html`<option value=${i}>${modelName(one)}</option>`)}</select>` : html`<span class="model">${model.name}</span>`}
    <span class="facts about">${model.config.layers} layers × ${model.config.heads} heads, ${model.config.dim} numbers a token, ${size(model.parameters)}</span>
    ${many && !isFile && html`<label class="facts">beside <select name="compare" value=${compare ?? ""} onChange=${(/** @type {any} */ event) => act.models({ compare: event.target.value === "" ? null : Number(event.target.value) })}>
      <option value="">nothing</option>${plain.concat(info.models.map((one, index) => ({ ...one, index })).filter((one) => one.snapshot !== null)).map((one) => html`<option value=${one.index}>${modelName(one)}</option>`)}</select></label>`}
    <span class="changes">${run.changes.slice(0, NAMED).map((change) => html`<button class="change" title=${isFile ? "" : "undo this change"} disabled=${isFile} onClick=${() => act.toggle(change)}>${changeName(change)}${!isFile && html` <b aria-hidden="true">×</b>`}</button>`)}
      ${run.changes.length > NAMED && html`<span class="facts" title=${run.changes.slice(NAMED).map(changeName).join("\n")}>and ${run.changes.length - NAMED} more</span>`}</span>
    ${beside && html`<span class="views" role="radiogroup" aria-label="which run is shown">${/** @type {const} */ (["run", "beside", "difference"]).map((name) => html`<button role="radio" data-view=${name} aria-checked=${view === name}
      onClick=${() => act.choose({ view: name })}>${name === "run" ? (run.changes.length ? "changed" : "this") : name === "beside" ? other : "difference"}</button>`)}</span>
      ${mean !== null && html`<span class="facts" title="Kullback-Leibler divergence of the two runs' next tokens, mean over places" id="kl">KL ${short(mean, 2)} nats</span>`}`}
    <span class="space"></span>
    <span class="status" role="status">${error ? html`<span class="error">${error}</span>` : saving || (busy ? "reading …" : "")}</span>
    <button onClick=${() => act.choose({ tour: 0 })} title="a guided tour in eight steps (t)" id="tour">Tour</button>
    ${!isFile && html`<button id="save" title="this view as one HTML file, which opens without llucid" onClick=${async () => {
      note("writing …");
      try {
        const { token, layer, head, key, spot, target, sampling, sort } = state, page = await exportPage(run.id, beside?.id ?? null, { token, layer, head, key, spot, target, sampling, sort, view, dark });
        save(page, "look.html");
        note(`look.html: ${size(page.size)}B`);
      } catch (problem) {
        note(String(/** @type {Error} */ (problem).message));
      }
    }}>Save as HTML</button>`}
    ${isFile && leftOut.length > 0 && html`<span class="facts" title=${leftOut.join("\n")}>not all is in this file</span>`}
    <button class="quiet" onClick=${() => act.choose({ dark: !dark })} title=${dark ? "light (l)" : "dark (l)"} aria-label=${dark ? "light colours" : "dark colours"}>${dark ? "☀" : "☾"}</button>
    <button class="quiet" onClick=${() => act.choose({ help: !state.help })} title="keys (?)" aria-label="keys">?</button>
  </header><${Training} state=${state} act=${act} />`;
}

/** @type {(model: import("look/types.js").Model) => string} */
const modelName = (model) => (model.snapshot === null ? model.name : `step ${model.snapshot}`);
