// @ts-check
// The stream: what the model would say after each layer, what each layer wrote, and where a logit comes from.
import { html, useEffect, useMemo, useRef, useState } from "look/vendor/preact.js";
import { address, answered, late, useAnswer } from "look/api.js";
import { colours, css, ink as readable, percent, root, short, visible } from "look/colour.js";
import { Legend, Pane, Picture, fit, hideTip, ink, outline, showTip, useSize } from "look/canvas.js";

/** @typedef {import("look/types.js").Props} Props */
/** @typedef {import("look/types.js").Lens} Lens */
/** @typedef {import("look/types.js").Norms} Norms */
/** @typedef {import("look/types.js").Part} Part */

const LEFT = 74, TOP = 18, BAND = 9;

/** @type {(row: number, layers: number) => string} */
const rowName = (row, layers) => (row === 0 ? "embedding" : row === layers ? `output (${row - 1})` : `after ${row - 1}`);

/** @type {(props: Props & {words: boolean}) => unknown} */
function Grid({ state, act, words }) {
  const { run, beside, view, token, layer, dark, full } = state;
  const here = useAnswer(address(`${run.id}/lens`)), there = useAnswer(beside && address(`${beside.id}/lens`)), norms = useAnswer(address(`${run.id}/stream`));
  const box = useRef(/** @type {HTMLElement | null} */ (null)), { width, height } = useSize(box);
  const [scroll, move] = useState([0, 0]);
  /** @type {Lens | undefined} */
  const lens = here.value;
  /** @type {Lens | undefined} */
  const other = view === "difference" ? there.value : undefined;
  /** @type {Norms | undefined} */
  const wrote = norms.value;
  const layers = lens ? lens.ids.length - 1 : 0, seq = lens ? lens.ids[0].length : 0;
  const cell = words ? Math.max(full ? 64 : 54, (width - LEFT - 2) / Math.max(1, seq)) : Math.max(2, (width - LEFT - 2) / Math.max(1, seq));
  const pitch = Math.max(BAND + 13, Math.min(full ? 80 : 50, (height - TOP - 4) / (layers + 1)));
  const most = useMemo(() => (wrote ? [...wrote.attention, ...wrote.feed_forward].reduce((most, row) => row.reduce((a, b) => Math.max(a, b), most), 0) : 1), [wrote]);
  useEffect(() => {
    const element = box.current;
    if (!element) return;
    const x = token * cell;
    if (x < element.scrollLeft || x + cell > element.scrollLeft + element.clientWidth - LEFT) element.scrollLeft = x - (element.clientWidth - LEFT) / 2;
    const y = (layer + 1) * pitch;
    if (y < element.scrollTop || y + pitch > element.scrollTop + element.clientHeight - TOP) element.scrollTop = y - (element.clientHeight - TOP) / 2;
  }, [token, layer, cell, pitch, width, height, seq, !wrote]); // before that there is nothing to scroll
  if (!lens || !wrote) return html`<div class="grid" ref=${box}><p class="empty">${here.error ?? ""}</p></div>`;
  const piece = (/** @type {Lens} */ from, /** @type {number} */ id) => visible(from.pieces[id] ?? String(id));
  const map = colours(other ? "diverging" : "sequential", dark);
  const find = (/** @type {number} */ x, /** @type {number} */ y) => {
    const place = Math.floor((x - LEFT + scroll[0]) / cell), row = Math.floor((y - TOP + scroll[1]) / pitch);
    return x < LEFT || y < TOP || place < 0 || place >= seq || row < 0 || row > layers ? null : { place, row };
  };
  const draw = (/** @type {CanvasRenderingContext2D} */ pen, /** @type {number} */ w, /** @type {number} */ h) => {
    const [left, top] = scroll, first = Math.max(0, Math.floor(left / cell)), last = Math.min(seq - 1, Math.ceil((left + w - LEFT) / cell));
    const tall = pitch - BAND;
    pen.font = `${Math.min(13, Math.max(9, tall * 0.62))}px ${ink("sans")}`;
    pen.textBaseline = "middle";
    pen.save();
    pen.beginPath();
    pen.rect(LEFT, TOP, w - LEFT, h - TOP);
    pen.clip();
    for (let row = 0; row <= layers; row++) {
      const y = TOP + row * pitch - top;
      if (y + pitch < TOP || y > h) continue;
      for (let place = first; place <= last; place++) {
        const x = LEFT + place * cell - left, id = lens.ids[row][place][0], p = lens.p[row][place][0];
        const theirs = other?.ids[row][place]?.[0], gap = other ? p - (other.p[row][place]?.[0] ?? 0) : 0;
        const t = other ? 0.5 + Math.max(-0.5, Math.min(0.5, gap / 2)) : root(p);
        pen.fillStyle = css(map, t);
        pen.fillRect(x + 0.5, y, cell - 1, tall);
        if (cell > 26) {
          pen.fillStyle = readable(map, t);
          fit(pen, theirs !== undefined && theirs !== id ? `${piece(other ?? lens, theirs)} → ${piece(lens, id)}` : piece(lens, id), x + 4, y + tall / 2 + 0.5, cell - (run.tokens[place + 1]?.id === id ? 14 : 8));
        }
        if (run.tokens[place + 1]?.id === id && cell > 14) {
          pen.beginPath();
          pen.arc(x + cell - 6, y + tall / 2, 2, 0, 7);
          pen.fillStyle = readable(map, t);
          pen.fill();
        }
        if (theirs !== undefined && theirs !== id) {
          pen.strokeStyle = ink("ink");
          pen.lineWidth = 1;
          pen.strokeRect(x + 1, y + 0.5, cell - 2, tall - 1);
        }
        if (row < layers) {
          const bars = /** @type {[number[][], string, number][]} */ ([[wrote.attention, "attention", 1.5], [wrote.feed_forward, "feedforward", 5]]);
          for (const [norm, colour, down] of bars) {
            pen.fillStyle = ink(colour);
            pen.fillRect(x + 1, y + tall + down, Math.max(0.5, (cell - 3) * (norm[row][place] / most)), 2.5);
          }
        }
      }
    }
    if (token < seq) outline(pen, LEFT + token * cell - left, TOP + (layer + 1) * pitch - top - 1, cell, tall + 2);
    pen.restore();
    pen.fillStyle = ink("accent-soft");
    pen.fillRect(LEFT + token * cell - left < LEFT ? LEFT : LEFT + token * cell - left, 0, token * cell - left < 0 ? 0 : cell, TOP - 2);
    pen.font = `11px ${ink("sans")}`;
    for (let place = first; place <= last; place++) {
      const x = LEFT + place * cell - left;
      if (x < LEFT - 1 || cell < 16) continue;
      pen.fillStyle = ink(place === token ? "ink" : "muted");
      fit(pen, visible(run.tokens[place]?.piece ?? ""), x + 3, TOP / 2, cell - 5);
    }
    for (let row = 0; row <= layers; row++) {
      const y = TOP + row * pitch - top;
      if (y < TOP - 8) continue;
      pen.fillStyle = ink(row === layer + 1 ? "accent" : "muted");
      pen.font = `${row === layer + 1 ? "600 " : ""}11px ${ink("sans")}`;
      pen.fillText(rowName(row, layers), 2, y + tall / 2);
    }
  };
  return html`<div class="grid" ref=${box} onScroll=${() => box.current && move([box.current.scrollLeft, box.current.scrollTop])}>
    <div class="extent" style=${{ width: `${Math.floor(LEFT + seq * cell)}px`, height: `${Math.floor(TOP + (layers + 1) * pitch - BAND)}px` }}></div>
    <div class="window" style=${{ width: `${width}px`, height: `${height}px` }}>
      <${Picture} class=${late(here, there) ? "stale" : ""} draw=${draw} label=${`After each of ${layers} blocks, the likeliest next token at each of ${seq} places. At the chosen place: ${lens.ids.map((row, i) => `${rowName(i, layers)} ${piece(lens, row[Math.min(token, seq - 1)][0])}`).join(", ")}`}
        onPoint=${(/** @type {number} */ x, /** @type {number} */ y, /** @type {MouseEvent} */ event) => {
          const found = find(x, y);
          if (!found) return hideTip();
          const { place, row } = found, band = (y - TOP + scroll[1]) % pitch > pitch - BAND;
          if (band && row < layers) {
            return showTip(event, [`block ${row} wrote at “${visible(run.tokens[place]?.piece ?? "")}”`, `attention: length ${short(wrote.attention[row][place])}`,
              `feed-forward: length ${short(wrote.feed_forward[row][place])}`, `the stream before: length ${short(wrote.stream[row][place])}`]);
          }
          showTip(event, [`${rowName(row, layers)}, after “${visible(run.tokens[place]?.piece ?? "")}”`,
            ...lens.ids[row][place].map((id, i) => `${percent(lens.p[row][place][i]).padStart(6, " ")}  ${piece(lens, id)}`),
            `length of the stream ${short(wrote.stream[row][place])}`]);
        }}
        onPick=${(/** @type {number} */ x, /** @type {number} */ y) => {
          const found = find(x, y);
          if (found) act.choose({ token: found.place, layer: Math.max(0, Math.min(layers - 1, found.row - 1)), key: null });
        }} />
    </div>
  </div>`;
}

/** @type {(part: Part) => string} */
const partName = ({ name, layer, head }) => (head !== null ? `head ${layer}.${head}` : layer === null ? name : `${name.endsWith("bias") ? "attention bias" : "feed-forward"} ${layer}`);

/** @type {(props: Props) => unknown} */
function Attribution({ state, act }) {
  const { run, beside, view, token, target, layer, head } = state;
  const box = useRef(/** @type {HTMLElement | null} */ (null)), { height } = useSize(box);
  const wanted = address(`${run.id}/parts`, { position: token, token: target });
  const here = useAnswer(answered(wanted) ? wanted : address(`${run.id}/parts`, { position: token }));
  /** @type {import("look/types.js").Parts | undefined} */
  const parts = here.value;
  const known = beside && parts && parts.token < state.info.models[beside.model].config.vocab_size;
  const there = useAnswer(known ? address(`${beside.id}/parts`, { position: token, token: parts.token }) : null);
  /** @type {import("look/types.js").Parts | undefined} */
  const others = there.value;
  if (!parts) return html`<div class="attribution" ref=${box}>${here.error && html`<p class="empty">${here.error}</p>`}</div>`;
  const other = new Map(others?.parts.map((part) => [part.name, part.value]));
  const gap = (/** @type {Part} */ part) => (view === "difference" && others ? part.value - (other.get(part.name) ?? 0) : part.value);
  const sorted = [...parts.parts].sort((a, b) => Math.abs(gap(b)) - Math.abs(gap(a)));
  const room = Math.max(3, Math.floor((height - 44) / 16.2) - 2), shown = sorted.slice(0, room), rest = sorted.slice(room);
  const rows = [...shown.map((part) => ({ part, name: partName(part), value: gap(part), also: other.get(part.name) })),
    ...(rest.length ? [{ part: null, name: `${rest.length} others`, value: rest.reduce((sum, part) => sum + gap(part), 0), also: undefined }] : [])];
  const most = Math.max(...rows.map((row) => Math.max(Math.abs(row.value), Math.abs(view === "difference" ? 0 : (row.also ?? 0)))), 1e-6);
  return html`<div class="attribution" ref=${box}><header><h3>What wrote the logit of “${visible(parts.piece)}”?</h3>
    <p class="how">These parts add up to it.</p></header>
    <ol class=${`parts ${late(here, there) ? "stale" : ""}`}>${rows.map((row) => {
      const side = (/** @type {number} */ x) => ({ left: `${x < 0 ? 50 + (50 * x) / most : 50}%`, width: `${(50 * Math.abs(x)) / most}%` });
      const chosen = row.part && row.part.layer === layer && (row.part.head === head || row.part.head === null);
      return html`<li key=${row.name}><button class=${`part ${chosen ? "chosen" : ""}`} disabled=${!row.part || row.part.layer === null} data-value=${row.value}
        onClick=${() => row.part?.layer !== null && row.part && act.choose({ layer: row.part.layer, ...(row.part.head === null ? {} : { head: row.part.head }) })}
        aria-label=${`${row.name} ${short(row.value)}`}><span class="name">${row.name}</span><span class="track"><span class=${row.value < 0 ? "fill below" : "fill above"} style=${side(row.value)}></span>
        ${row.also !== undefined && view !== "difference" && html`<span class="ghost" style=${side(row.also)}></span>`}</span><span class="number">${short(row.value)}</span></button></li>`;
    })}
    <li class="total"><span class="name">${view === "difference" && others ? "change" : "logit"}</span><span class="number" id="logit">${short(parts.parts.reduce((sum, part) => sum + gap(part), 0), 5)}</span></li></ol>
  </div>`;
}

/** @type {(props: Props) => unknown} */
export function StreamPane({ state, act }) {
  const difference = state.view === "difference" && state.beside, [words, widen] = useState(true);
  const zoom = html`<button class="quiet" onClick=${() => widen(!words)} aria-pressed=${!words} title="all places side by side, or wide enough for words">whole text</button>`;
  return html`<${Pane} name="stream" number=${3} state=${state} act=${act} title=${difference ? "Where do the two runs part?" : "What would the model say after each layer?"}
    how=${html`${difference ? "Colour: how much likelier the best guess became; outlined where it is another one." : "A cell is the best guess for the next token (logit lens), a dot: it is right."}${" "}Below it, how much <b class="attention">attention</b> and <b class="feedforward">feed-forward</b> wrote.`}
    tools=${html`${zoom}${difference ? html`<${Legend} kind="diverging" dark=${state.dark} from="−1" to="+1" />` : html`<${Legend} kind="sequential" dark=${state.dark} from="0" to="1" title="p" />`}`}>
    <${Grid} state=${state} act=${act} words=${words} /><${Attribution} state=${state} act=${act} />
  </${Pane}>`;
}
