// @ts-check
// The code: llama.py as it is, and under each expression the numbers that it has just computed.
import { html, useEffect, useLayoutEffect, useMemo, useRef, useState } from "look/vendor/preact.js";
import { address, isFile, useAnswer, useNumbers } from "look/api.js";
import { colours, short, visible } from "look/colour.js";
import { Legend, Pane, Picture, heat, hideTip, ink, outline, showTip } from "look/canvas.js";

/** @typedef {import("look/types.js").Props} Props */
/** @typedef {import("look/types.js").Source} Source */
/** @typedef {import("look/types.js").Names} Names */
/** @typedef {import("look/types.js").Value} Value */
/** @typedef {import("look/types.js").State} State */
/** @typedef {import("look/types.js").Reading} Reading */
/** @typedef {{site: number, nth: number}} Spot an expression, and which of its runs in the chosen layer */
/** @typedef {{value: Value | null, weight: string | null, order: number}} Seen */

const WORDS = "and as assert class def elif else False for from if import in is lambda None not or raise return True while with yield";
const GRAMMAR = new RegExp(
  `(?<doc>"""[^]*?""")|(?<string>[fr]?"(?:\\\\.|[^"\\\\\\n])*")|(?<comment>#.*)|(?<word>\\b(?:${WORDS.split(" ").join("|")})\\b)|(?<number>\\b\\d[\\d_.]*(?:e-?\\d+)?)|(?<name>[\\p{L}_][\\p{L}\\p{N}_]*)|(?<mark>@\\w+)`,
  "gu",
);

/** @type {(text: string) => {start: number, end: number, kind: string}[]} */
function highlight(text) {
  return [...text.matchAll(GRAMMAR)].flatMap((match) => {
    const [kind] = Object.entries(match.groups ?? {}).find(([, found]) => found !== undefined) ?? ["name"];
    if (kind === "name") {
      const before = text.slice(Math.max(0, match.index - 6), match.index);
      return /(def|class) $/.test(before) ? [{ start: match.index, end: match.index + match[0].length, kind: "defined" }] : [];
    }
    return [{ start: match.index, end: match.index + match[0].length, kind }];
  });
}

/** What was seen where in this layer, and outside all layers. @type {(names: Names, layer: number) => Map<number, Seen[]>} */
function seenIn(names, layer) {
  /** @type {Map<number, Seen[]>} */
  const seen = new Map();
  names.seen.forEach(([site, where, what], order) => {
    if (where !== null && where !== layer) return;
    const one = typeof what === "string" ? { value: null, weight: what, order } : { value: names.values[what], weight: null, order };
    const list = seen.get(site);
    if (list) list.push(one);
    else seen.set(site, [one]);
  });
  return seen;
}

/** @type {(seen: Map<number, Seen[]>, spot: Spot | null) => Seen | null} */
function at(seen, spot) {
  const list = spot && seen.get(spot.site);
  return list ? list[Math.min(spot.nth, list.length - 1)] : null;
}

/**
 * Which numbers of a value are shown: of the batch the first, of the heads the chosen one.
 * @param {Value} value
 * @param {State} state
 * @returns {{slice: string | null, axes: string[]}} the axes that are left, by name
 */
function cut({ shape, axes }, { run, head }, config = /** @type {any} */ (null)) {
  const { heads, kv_heads } = config, group = heads / kv_heads, seq = run.tokens.length;
  /** @type {(number | null)[]} */
  const picks = shape.map((size, i) => {
    const name = axes[i];
    if (name === "batch" || (i === 0 && size === 1 && shape.length > 1)) return 0;
    if (size === 1 && i < shape.length - 1) return 0;
    if (i === shape.length - 1) return null;
    if (name === "heads" || name === "q_heads") return head;
    if (name === "kv_heads") return Math.floor(head / group);
    if (name === "group") return head % group;
    return null;
  });
  const limit = shape.at(-1) === 2 ? 3 : 2, left = () => picks.filter((pick) => pick === null).length;
  for (const [size, pick] of /** @type {[number, () => number][]} */ ([[heads, () => head], [kv_heads, () => Math.floor(head / group)], [group, () => head % group]])) {
    const i = picks.findIndex((taken, axis) => taken === null && shape[axis] === size && size !== seq && axis < shape.length - 1);
    if (left() > limit && i >= 0) picks[i] = pick();
  }
  for (let i = 0; left() > limit; i++) picks[i] ??= 0;
  const written = picks.map((pick) => pick ?? ":");
  while (written.at(-1) === ":") written.pop();
  return { slice: written.join(",") || null, axes: axes.map((name, i) => name ?? String(shape[i])).filter((_, i) => picks[i] === null) };
}

/** @type {(state: State, reading: Reading, seen: Seen | null, small?: boolean, minus?: string) => string | null} */
function numbersAt(state, reading, seen, small = false, minus = undefined) {
  const size = { ...(small && !isFile ? { as: "u8", max: 32 } : { as: "f32" }), minus };
  if (seen?.weight) return address(`${reading.id}/weight`, { ...size, name: seen.weight });
  if (!seen?.value) return null;
  return address(`${reading.id}/value`, { ...size, name: seen.value.name, slice: cut(seen.value, state, config(state)).slice });
}

/** @type {(state: State) => import("look/types.js").Config} */
const config = ({ info, run }) => info.models[run.model].config;

/** @type {(shape: number[]) => {rows: number, columns: number}} */
function matrix(shape) {
  const last = shape.length > 2 && shape.at(-1) === 2 ? 2 : 1;
  const columns = shape.slice(-last).reduce((a, b) => a * b, 1);
  return { rows: shape.slice(0, -last).reduce((a, b) => a * b, 1), columns };
}

/** The size to which colours reach: what 99.5 % of the numbers stay within. @type {(data: Float32Array) => {limit: number, negative: boolean, clipped: boolean}} */
function range(data) {
  const step = Math.max(1, Math.floor(data.length / 20000)), sizes = [];
  let negative = false;
  for (let i = 0; i < data.length; i += step) {
    if (Number.isFinite(data[i])) sizes.push(Math.abs(data[i]));
    if (data[i] < 0 && data[i] !== -Infinity) negative = true;
  }
  sizes.sort((a, b) => a - b);
  const most = sizes.at(-1) ?? 1, limit = sizes[Math.floor(0.995 * (sizes.length - 1))] || most || 1;
  return { limit, negative, clipped: most > limit };
}

/** @type {(props: {state: State, seen: Seen | null, wide?: boolean}) => unknown} */
function Thumbnail({ state, seen }) {
  const [close, approach] = useState(false), box = useRef(/** @type {HTMLElement | null} */ (null));
  useEffect(() => {
    const watch = new IntersectionObserver(([entry]) => entry.isIntersecting && approach(true), { rootMargin: "100px" });
    watch.observe(/** @type {HTMLElement} */ (box.current));
    return () => watch.disconnect();
  }, []);
  const { value, fresh } = useAnswer(close ? numbersAt(state, state.run, seen, true) : null);
  return html`<span class=${`thumb ${fresh ? "" : "stale"}`} ref=${box}>${value?.shape && html`<${Picture} label="" draw=${(/** @type {any} */ pen, /** @type {number} */ w, /** @type {number} */ h) => {
    const { limit, negative } = range(value.data);
    heat(pen, { data: value.data, ...matrix(value.shape) }, [0, 0, w, h], colours(negative ? "diverging" : "sequential", state.dark), (x) => (negative ? 0.5 + x / limit / 2 : x / limit));
  }} />`}</span>`;
}

/** @type {(seen: Seen | null) => string} */
function shapeOf(seen) {
  if (!seen?.value) return "";
  return seen.value.shape.filter((size, i) => !(i === 0 && size === 1)).join(" × ") || "one number";
}

/** What a line computed, beside it. @type {(props: {state: State, seen: Seen | null, summaries: Record<string, import("look/types.js").Summary>}) => unknown} */
function Margin({ state, seen, summaries }) {
  if (!seen?.value) return null;
  const summary = summaries[seen.value.name];
  return html`<span class="margin"><span class="shape">${shapeOf(seen)}</span><${Thumbnail} state=${state} seen=${seen} />
    <span class="stats">${summary && summary.mean !== null ? `${short(summary.mean, 2)} ± ${short(summary.std, 2)}` : ""}</span></span>`;
}

/**
 * The lines of the source, each cut into the expressions that ran.
 * @param {Source} source
 * @param {Map<number, Seen[]>} seen
 */
function typeset(source, seen) {
  const lines = source.text.replace(/\n$/, "").split("\n"), marks = highlight(source.text);
  /** @type {{site: number, from: number, to: number, outer: number}[][]} */
  const spans = lines.map(() => []);
  source.sites.forEach((site, number) => {
    if (!seen.has(number)) return;
    for (const [line, column, endLine, endColumn] of site.spans) {
      for (let l = line; l <= endLine; l++) {
        const text = lines[l - 1] ?? "", from = l === line ? column : text.search(/\S/), to = l === endLine ? endColumn : text.length;
        if (to > from) spans[l - 1].push({ site: number, from, to, outer: site.kind === "variable" || site.kind === "result" ? 0 : 1 });
      }
    }
  });
  let offset = 0, next = 0;
  return lines.map((text, number) => {
    const start = offset;
    offset += text.length + 1;
    while (next < marks.length && marks[next].end <= start) next++;
    /** @type {{from: number, to: number, kind: string}[]} */
    const kinds = [];
    for (let m = next; m < marks.length && marks[m].start < offset - 1; m++) {
      kinds.push({ from: Math.max(0, marks[m].start - start), to: Math.min(text.length, marks[m].end - start), kind: marks[m].kind });
    }
    const plain = (/** @type {number} */ from, /** @type {number} */ to) => {
      const pieces = [];
      let here = from;
      for (const mark of kinds) {
        if (mark.to <= here || mark.from >= to) continue;
        if (mark.from > here) pieces.push(text.slice(here, mark.from));
        const end = Math.min(mark.to, to);
        pieces.push(html`<span class=${mark.kind}>${text.slice(Math.max(here, mark.from), end)}</span>`);
        here = end;
      }
      if (here < to) pieces.push(text.slice(here, to));
      return pieces;
    };
    const sorted = spans[number].sort((a, b) => a.from - b.from || b.to - a.to || a.outer - b.outer);
    let index = 0;
    /** @type {(from: number, to: number) => unknown[]} */
    const nested = (from, to) => {
      const pieces = [];
      let here = from;
      while (index < sorted.length && sorted[index].from < to) {
        const span = sorted[index++];
        if (span.from < here || span.to > to) continue;
        pieces.push(...plain(here, span.from));
        pieces.push(html`<span class="x" data-site=${span.site}>${nested(span.from, span.to)}</span>`);
        here = span.to;
      }
      return [...pieces, ...plain(here, to)];
    };
    const indent = Math.max(0, text.search(/\S/)), doc = kinds.some((mark) => mark.kind === "doc");
    const equation = doc && /[=√∑⊙·ᵀᶻ]|softmax\(/.test(text) && /^\s*("""|x|logits)/.test(text);
    const ran = sorted.length > 0;
    const result = [...sorted].reverse().find((span) => ["variable", "result"].includes(source.sites[span.site].kind) && source.sites[span.site].spans.some((s) => s[0] === number + 1));
    return { indent, kind: `${doc ? "docstring" : ""} ${equation ? "equation" : ""} ${ran ? "ran" : ""}`, content: nested(indent, text.length), result: result?.site ?? null };
  });
}

/** @type {(props: {summary: import("look/types.js").Summary | undefined}) => unknown} */
function Histogram({ summary }) {
  if (!summary || summary.mean === null) return null;
  const most = Math.max(...summary.histogram, 1);
  return html`<span class="histogram" role="img" aria-label=${`a histogram of the numbers from ${short(summary.min)} to ${short(summary.max)}`}>
    ${summary.histogram.map((/** @type {number} */ count) => html`<i style=${{ height: `${Math.max(count ? 4 : 0, (100 * count) / most)}%` }}></i>`)}</span>`;
}

/**
 * The numbers of one value: all of them as a picture, and the chosen token's row as bars.
 * @param {Props & {seen: Seen | null, text: string, summaries: Record<string, any>}} props
 */
function Inspector({ state, act, seen, text, summaries }) {
  const { run, dark, token } = state;
  const { value, fresh, error } = useNumbers((reading, minus) => numbersAt(state, reading, seen, false, minus), state);
  if (!seen) return html`<div class="inspector"><p class="empty">Point at an expression, and its numbers appear here. n steps to the next line that runs.</p></div>`;
  const name = seen.value?.name ?? seen.weight ?? "", summary = seen.value && summaries[seen.value.name];
  /** @type {import("look/types.js").Numbers | undefined} */
  const numbers = fresh ? value : undefined;
  const axes = seen.value ? cut(seen.value, state, config(state)).axes : ["out", "in"];
  const size = numbers ? matrix(numbers.shape) : { rows: 0, columns: 0 };
  const bounds = numbers ? range(numbers.data) : { limit: 1, negative: true, clipped: false };
  const map = colours(bounds.negative ? "diverging" : "sequential", dark);
  const of = (/** @type {number} */ x) => (bounds.negative ? 0.5 + x / bounds.limit / 2 : x / bounds.limit);
  const places = size.rows === run.tokens.length && axes[0] !== "dim" && size.columns > 0, row = places ? token : 0;
  const pooled = numbers?.pool.some((n) => n > 1);
  const pointed = (/** @type {number} */ r, /** @type {number} */ c, /** @type {MouseEvent} */ event) => {
    if (!numbers || r < 0 || r >= size.rows || c < 0 || c >= size.columns) return hideTip();
    const [a, b] = [axes.at(-2) ?? "", axes.at(-1) ?? ""], complex = size.columns !== numbers.shape.at(-1);
    const down = numbers.pool.at(complex ? -3 : -2) ?? 1, across = complex ? 1 : (numbers.pool.at(-1) ?? 1);
    const from = (/** @type {number} */ i, /** @type {number} */ block) => (block > 1 ? `${i * block} to ${(i + 1) * block - 1}` : `${i}`);
    showTip(event, [
      `${text}  ${size.rows > 1 ? `[${from(r, down)}, ${from(c, across)}]` : `[${from(c, across)}]`} = ${short(numbers.data[r * size.columns + c], 6)}`,
      size.rows > 1 && `${axes.length > 1 ? (axes.length > 2 ? axes[0] : a) : "row"} ${from(r, down)}${places ? ` “${visible(run.tokens[r].piece)}”` : ""}`,
      `${b} ${from(c, across)}${across === 1 && (b === "slots" || b === "seq") && run.tokens[c] ? ` “${visible(run.tokens[c].piece)}”` : ""}`,
      pooled && "the largest of its block: there are more numbers than pixels",
    ]);
  };
  const say = `${text}: ${shapeOf(seen)} numbers${summary && summary.mean !== null ? `, mean ${short(summary.mean)}, from ${short(summary.min)} to ${short(summary.max)}` : ""}`;
  return html`<div class="inspector" data-name=${name}>
    <header><h3>What is in <code>${text.length > 60 ? `${text.slice(0, 58)}…` : text}</code>?</h3>
      <p class="how">${places ? "Rows are places in the text; the chosen one is outlined, and drawn below." : size.rows > 1 ? "Rows and columns of the array; the colour is the number." : "Each bar is a number."}</p>
      ${numbers && size.columns > 1 && html`<${Legend} kind=${bounds.negative ? "diverging" : "sequential"} dark=${dark}
        from=${bounds.negative ? `${bounds.clipped ? "≤ " : ""}${short(-bounds.limit, 2)}` : "0"} to=${`${bounds.clipped ? "≥ " : ""}${short(bounds.limit, 2)}`} />`}</header>
    <p class="facts"><code class="path" title=${name}>${name}</code>
      <span>${seen.value ? seen.value.shape.map((n, i) => (n > 1 || seen.value?.shape.length === 1) && html`<span class="axis">${seen.value?.axes[i] ?? ""} <b>${n}</b></span>`) : html`<span class="axis">a weight</span>`}</span>
      ${summary && summary.mean !== null && html`<span class="numbers" title="smallest, mean ± standard deviation, largest">${short(summary.min)} … <b>${short(summary.mean)}</b> ± ${short(summary.std)} … ${short(summary.max)}</span><${Histogram} summary=${summary} />`}</p>
    ${error && html`<p class="empty">${error}</p>`}
    ${numbers && size.rows * size.columns === 1 && html`<p class="single">${short(numbers.data[0], 7)}</p>`}
    ${numbers && size.rows > 1 && html`<${Picture} class="map" label=${say}
      draw=${(/** @type {any} */ pen, /** @type {number} */ w, /** @type {number} */ h) => {
        heat(pen, { data: numbers.data, ...size }, [0, 0, w, h], map, of);
        if (places) outline(pen, 1, Math.max(1, (h * row) / size.rows - 0.5), w - 2, Math.max(3, h / size.rows + 1));
        pen.canvas.dataset.values = "drawn";
      }}
      onPoint=${(/** @type {number} */ x, /** @type {number} */ y, /** @type {MouseEvent} */ event) => {
        const box = /** @type {HTMLElement} */ (event.target);
        pointed(Math.floor((y / box.clientHeight) * size.rows), Math.floor((x / box.clientWidth) * size.columns), event);
      }}
      onPick=${places ? (/** @type {number} */ x, /** @type {number} */ y, /** @type {MouseEvent} */ event) => act.choose({ token: Math.floor((y / /** @type {HTMLElement} */ (event.target).clientHeight) * size.rows), key: null }) : undefined} />`}
    ${numbers && size.columns > 1 && html`<${Picture} class="row" height=${size.rows > 1 ? (state.full === "code" ? 70 : 34) : 90} label=${`the numbers of row ${row}`}
      draw=${(/** @type {any} */ pen, /** @type {number} */ w, /** @type {number} */ h) => {
        const zero = bounds.negative ? h / 2 : h - 1, scale = (bounds.negative ? h / 2 : h) - 2;
        pen.fillStyle = ink("line");
        pen.fillRect(0, zero, w, 1);
        for (let i = 0; i < size.columns; i++) {
          const x = numbers.data[row * size.columns + i], tall = Math.max(-1, Math.min(1, x / bounds.limit)) * scale;
          if (!Number.isFinite(x)) continue;
          pen.fillStyle = ink(x < 0 ? "below" : bounds.negative ? "above" : "data");
          pen.fillRect((i * w) / size.columns, tall > 0 ? zero - tall : zero, Math.max(0.7, w / size.columns - (w / size.columns > 3 ? 1 : 0)), Math.abs(tall));
        }
      }}
      onPoint=${(/** @type {number} */ x, /** @type {number} */ _, /** @type {MouseEvent} */ event) => pointed(row, Math.floor((x / /** @type {HTMLElement} */ (event.target).clientWidth) * size.columns), event)} />`}
  </div>`;
}

/** The lines that run in this layer, in order: where stepping stops. @type {(source: Source, names: Names, layer: number) => (Spot & {order: number})[]} */
function stepsOf(source, names, layer) {
  /** @type {Map<number, number>} */
  const counts = new Map();
  /** @type {(Spot & {order: number})[]} */
  const steps = [];
  names.seen.forEach(([site, where], order) => {
    if (where !== null && where !== layer) return;
    const nth = counts.get(site) ?? 0;
    counts.set(site, nth + 1);
    if (["variable", "result"].includes(source.sites[site].kind)) steps.push({ site, nth, order });
  });
  return steps;
}

/** @type {(props: Props) => unknown} */
export function CodePane({ state, act }) {
  const { run, layer, spot, dark, playing } = state;
  const source = /** @type {Source | undefined} */ (useAnswer(address("source")).value);
  const names = /** @type {Names | undefined} */ (useAnswer(address(`${run.id}/names`)).value);
  const inside = useAnswer(address(`${run.id}/summaries`, { layer })).value, outside = useAnswer(address(`${run.id}/summaries`)).value;
  const summaries = useMemo(() => ({ ...outside, ...inside }), [inside, outside]);
  const [hover, point] = useState(/** @type {number | null} */ (null));
  const listing = useRef(/** @type {HTMLElement | null} */ (null)), shownIn = useRef(state.full);
  const seen = useMemo(() => (names ? seenIn(names, layer) : new Map()), [names, layer]);
  const lines = useMemo(() => (source && seen.size ? typeset(source, seen) : []), [source, seen]);
  const steps = useMemo(() => (source && names ? stepsOf(source, names, layer) : []), [source, names, layer]);
  const shown = hover === null ? spot : { site: hover, nth: spot?.nth ?? 0 };
  const position = spot ? steps.findIndex((step) => step.site === spot.site && step.nth === spot.nth) : -1;
  const go = (/** @type {number} */ by) => {
    const order = at(seen, spot)?.order ?? -1, ends = by > 0 ? steps.find((step) => step.order > order) : steps.findLast((step) => step.order < order);
    if (steps.length) act.choose({ spot: ends ?? steps[by > 0 ? 0 : steps.length - 1] });
  };
  /** Chooses the next expression of the chosen line. */
  const part = () => {
    const sites = [...new Set([.../** @type {NodeListOf<HTMLElement>} */ (listing.current?.querySelectorAll(".line.current .x") ?? [])].map((span) => Number(span.dataset.site)))];
    if (spot && sites.length) act.choose({ spot: { ...spot, site: sites[(sites.indexOf(spot.site) + 1) % sites.length] } });
  };
  const stepping = useRef(go), parting = useRef(part);
  stepping.current = go;
  parting.current = part;
  useEffect(() => {
    const listen = (/** @type {any} */ event) => (event.detail === 0 ? parting.current() : stepping.current(event.detail));
    window.addEventListener("look-step", listen);
    return () => window.removeEventListener("look-step", listen);
  }, []);
  useEffect(() => {
    if (!playing) return;
    const timer = setInterval(() => stepping.current(1), 900);
    return () => clearInterval(timer);
  }, [playing]);
  useLayoutEffect(() => {
    const box = listing.current;
    if (!box || !lines.length) return;
    for (const old of box.querySelectorAll(".chosen, .current")) old.classList.remove("chosen", "current");
    if (!spot) return;
    const spans = box.querySelectorAll(`[data-site="${spot.site}"]`);
    for (const span of spans) span.classList.add("chosen");
    const line = /** @type {HTMLElement | null} */ (spans[0]?.closest(".line"));
    if (!line) return;
    line.classList.add("current");
    const { offsetTop: top } = line, room = box.clientHeight, moved = shownIn.current !== state.full;
    shownIn.current = state.full;
    if (!moved && top > box.scrollTop + 30 && top + line.offsetHeight < box.scrollTop + room - 10) return;
    // From the function's first line on, if what runs then still is in view.
    let first = line;
    while (first.previousElementSibling && !/^(def|class) /.test(first.querySelector("code")?.textContent ?? "")) first = /** @type {HTMLElement} */ (first.previousElementSibling);
    box.scrollTo({ top: top + line.offsetHeight - first.offsetTop < room - 20 ? first.offsetTop - 6 : top - room / 2 });
  }, [spot, lines, state.full]);
  useLayoutEffect(() => {
    const box = listing.current;
    for (const old of box?.querySelectorAll(".hover") ?? []) old.classList.remove("hover");
    if (hover !== null) for (const span of box?.querySelectorAll(`[data-site="${hover}"]`) ?? []) span.classList.add("hover");
  }, [hover, lines]);
  const siteUnder = (/** @type {any} */ event) => {
    const span = event.target.closest?.(".x");
    return span ? Number(span.dataset.site) : null;
  };
  const called = source && spot ? source.sites[spot.site].function : null;
  const functions = useMemo(() => (source ? [...new Set(steps.map((step) => source.sites[step.site].function))] : []), [source, steps]);
  const view = useMemo(() => lines.map((line, i) => html`<div class=${`line ${line.kind}`} key=${i} data-line=${i + 1}>
      <span class="number">${i + 1}</span><code style=${{ paddingLeft: `${line.indent + 2}ch`, textIndent: "-2ch" }}>${line.content.length ? line.content : " "}</code>
      ${line.result !== null && html`<${Margin} state=${state} seen=${at(seen, { site: line.result, nth: source?.sites[line.result].function === called ? (spot?.nth ?? 0) : 0 })} summaries=${summaries} />`}
    </div>`), [lines, seen, summaries, dark, called, called && spot?.nth, state.head, run]);
  const look = at(seen, shown), many = spot ? (seen.get(spot.site)?.length ?? 0) : 0;
  return html`<${Pane} name="code" number=${2} state=${state} act=${act} title="What does llama.py compute?"
    how=${`Beside each line of this file is what it has just computed in block ${layer}. Point at any expression.`}
    tools=${html`<select aria-label="go to a function" value=${called ?? ""} onChange=${(/** @type {any} */ event) => act.choose({ spot: steps.find((step) => source?.sites[step.site].function === event.target.value) ?? null })}>
        ${functions.map((name) => html`<option value=${name}>${name}</option>`)}</select>
      ${many > 1 && html`<button class="quiet facts" title="it runs several times in this block: show the next run" onClick=${() => spot && act.choose({ spot: { ...spot, nth: (spot.nth + 1) % many } })}>run ${(spot?.nth ?? 0) + 1} of ${many}</button>`}
      <button onClick=${() => go(-1)} title="one step back (p)" aria-label="one step back">◂</button><button onClick=${() => go(1)} title="one step on (n)" aria-label="one step on" id="step">▸</button>
      <button onClick=${() => act.choose({ playing: !playing })} aria-pressed=${playing} title="steps by itself (space)" aria-label="play">${playing ? "❚❚" : "▶"}</button>
      <span class="facts">${position >= 0 ? `${position + 1} of ${steps.length}` : `${steps.length} steps`}</span>`}>
    <div class="listing" ref=${listing} tabIndex=${0} role="group" aria-label="llama.py"
      onMouseOver=${(/** @type {any} */ event) => point(siteUnder(event))} onMouseLeave=${() => point(null)}
      onClick=${(/** @type {any} */ event) => { const site = siteUnder(event); if (site !== null) act.choose({ spot: { site, nth: spot?.nth ?? 0 } }); }}>${view}</div>
    <${Inspector} state=${state} act=${act} seen=${look} text=${shown && source ? source.sites[shown.site].text : ""} summaries=${summaries} />
  </${Pane}>`;
}
