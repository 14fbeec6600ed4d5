// @ts-check
// Pictures on Canvas 2D: sharp on every screen, drawn again when what they show or their size changes.
import { html, useEffect, useLayoutEffect, useRef, useState } from "look/vendor/preact.js";
import { colours, css, short } from "look/colour.js";

/** @typedef {import("look/colour.js").Ramp} Ramp */
/** @typedef {CanvasRenderingContext2D} Pen */

/**
 * A canvas that fills its box. `draw` gets a pen in CSS pixels, and the width and height.
 * @param {{
 *   draw: (pen: Pen, width: number, height: number) => void, label: string, class?: string, height?: number, width?: number,
 *   onPoint?: (x: number, y: number, event: MouseEvent) => void, onLeave?: () => void, onPick?: (x: number, y: number, event: MouseEvent) => void,
 * }} props
 */
export function Picture({ draw, label, class: kind = "", height, width, onPoint, onLeave, onPick }) {
  const canvas = useRef(/** @type {HTMLCanvasElement | null} */ (null));
  const [size, resize] = useState([0, 0]);
  useLayoutEffect(() => {
    const box = /** @type {HTMLCanvasElement} */ (canvas.current);
    const measure = () => resize((last) => (last[0] === box.clientWidth && last[1] === box.clientHeight ? last : [box.clientWidth, box.clientHeight]));
    const watch = new ResizeObserver(measure);
    watch.observe(box);
    measure();
    return () => watch.disconnect();
  }, []);
  useLayoutEffect(() => {
    const box = /** @type {HTMLCanvasElement} */ (canvas.current), [w, h] = size, ratio = window.devicePixelRatio || 1;
    if (!w || !h) return;
    if (box.width !== Math.round(w * ratio) || box.height !== Math.round(h * ratio)) {
      box.width = Math.round(w * ratio);
      box.height = Math.round(h * ratio);
    }
    const pen = /** @type {Pen} */ (box.getContext("2d"));
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, w, h);
    draw(pen, w, h);
  });
  const at = (/** @type {((x: number, y: number, event: MouseEvent) => void) | undefined} */ then) => (/** @type {MouseEvent} */ event) => {
    const box = /** @type {HTMLCanvasElement} */ (canvas.current).getBoundingClientRect();
    then?.(event.clientX - box.left, event.clientY - box.top, event);
  };
  return html`<canvas ref=${canvas} class=${`picture ${kind} ${onPick ? "pickable" : ""}`} role=${label ? "img" : "presentation"} aria-label=${label || null} aria-hidden=${label ? null : "true"}
    style=${{ ...(height ? { height: `${height}px` } : {}), ...(width ? { width: `${width}px` } : {}) }}
    onMouseMove=${onPoint && at(onPoint)} onMouseLeave=${() => { hideTip(); onLeave?.(); }} onClick=${onPick && at(onPick)} />`;
}

const raster = document.createElement("canvas");

/**
 * Draws rows × columns numbers into a box, each t = of(number) a colour of the map; more numbers than pixels are averaged.
 * @param {Pen} pen
 * @param {{data: ArrayLike<number>, rows: number, columns: number, start?: number}} matrix
 * @param {[number, number, number, number]} box x, y, width, height
 * @param {Ramp} map
 * @param {(number: number) => number} of
 */
export function heat(pen, { data, rows, columns, start = 0 }, [x, y, width, height], map, of) {
  if (!rows || !columns) return;
  raster.width = columns;
  raster.height = rows;
  const paint = /** @type {Pen} */ (raster.getContext("2d")), image = paint.createImageData(columns, rows), { rgb } = map;
  for (let i = 0; i < rows * columns; i++) {
    const value = data[start + i];
    if (Number.isNaN(value)) {
      image.data.set([255, 0, 255, 255], 4 * i);
      continue;
    }
    const c = 3 * Math.max(0, Math.min(255, Math.round(255 * of(value))));
    image.data[4 * i] = rgb[c];
    image.data[4 * i + 1] = rgb[c + 1];
    image.data[4 * i + 2] = rgb[c + 2];
    image.data[4 * i + 3] = value === -Infinity ? 0 : 255;
  }
  paint.putImageData(image, 0, 0);
  pen.imageSmoothingEnabled = columns > width * window.devicePixelRatio || rows > height * window.devicePixelRatio;
  pen.drawImage(raster, x, y, width, height);
}

/** @type {(name: string) => string} a colour of style.css */
export function ink(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

/** @type {(pen: Pen, x: number, y: number, width: number, height: number) => void} marks what is chosen */
export function outline(pen, x, y, width, height) {
  pen.lineWidth = 4;
  pen.strokeStyle = ink("paper");
  pen.strokeRect(x, y, width, height);
  pen.lineWidth = 2;
  pen.strokeStyle = ink("accent");
  pen.strokeRect(x, y, width, height);
}

/** @type {(pen: Pen, text: string, x: number, y: number, width: number) => void} a text, cut so that it fits */
export function fit(pen, text, x, y, width) {
  if (pen.measureText(text).width <= width) return pen.fillText(text, x, y);
  let cut = text;
  while (cut.length > 1 && pen.measureText(`${cut}…`).width > width) cut = cut.slice(0, -1);
  if (cut.length > 1 || width > 12) pen.fillText(cut.length > 1 ? `${cut}…` : cut, x, y);
}

/**
 * The colours of a picture and what they stand for.
 * @param {{kind: "sequential" | "diverging", dark: boolean, from: number | string, to: number | string, title?: string}} props
 */
export function Legend({ kind, dark, from, to, title = "" }) {
  const map = colours(kind, dark), stops = [0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1].map((t) => css(map, t)).join(", ");
  const say = (/** @type {number | string} */ end) => (typeof end === "number" ? short(end, 2) : end);
  return html`<span class="legend">${title && html`<span>${title}</span>`}<span>${say(from)}</span>
    <span class="bar" style=${{ background: `linear-gradient(to right, ${stops})` }}></span><span>${say(to)}</span></span>`;
}

/** @type {HTMLElement | null} */
let tip = null;

/** @type {(event: MouseEvent, lines: (string | null | undefined | false)[]) => void} shows numbers beside the pointer; the first line is the heading */
export function showTip(event, lines) {
  if (!tip) {
    tip = document.createElement("div");
    tip.className = "tip";
    tip.setAttribute("role", "status");
    document.body.append(tip);
  }
  tip.replaceChildren(
    ...lines.filter((line) => typeof line === "string").map((line, i) => {
      const row = document.createElement(i ? "div" : "b");
      row.textContent = line;
      return row;
    }),
  );
  tip.hidden = false;
  const { offsetWidth: width, offsetHeight: height } = tip;
  const x = event.clientX + 14 + width > window.innerWidth ? event.clientX - width - 10 : event.clientX + 14;
  const y = event.clientY + 14 + height > window.innerHeight ? event.clientY - height - 10 : event.clientY + 14;
  tip.style.transform = `translate(${Math.max(4, x)}px, ${Math.max(4, y)}px)`;
}

export function hideTip() {
  if (tip) tip.hidden = true;
}

/** Whether the pane is small: its box's width and height, kept up to date. @param {{current: HTMLElement | null}} box */
export function useSize(box) {
  const [size, set] = useState({ width: 0, height: 0 });
  useEffect(() => {
    const element = /** @type {HTMLElement} */ (box.current);
    const watch = new ResizeObserver(() => set({ width: element.clientWidth, height: element.clientHeight }));
    watch.observe(element);
    return () => watch.disconnect();
  }, []);
  return size;
}

/**
 * A pane: a picture that answers the question in its title, and one sentence how to read it.
 * @param {{name: import("look/types.js").Pane, state: import("look/types.js").State, act: import("look/types.js").Actions, key?: number, title: unknown, how: unknown, number: number, tools?: unknown, children?: unknown}} props
 */
export function Pane({ name, state, act, title, how, number, tools, children }) {
  const full = state.full === name;
  return html`<section class=${`pane ${name} ${full ? "full" : ""}`} id=${`pane-${name}`} aria-labelledby=${`title-${name}`}>
    <header><h2 id=${`title-${name}`}>${title}</h2><p class="how">${how}</p><span class="tools">${tools}
      ${name !== "text" && html`<button class="quiet" title=${full ? "all panes (Esc)" : `enlarge (${number})`} aria-label=${full ? "show all panes" : `enlarge the ${name}`}
        aria-pressed=${full} onClick=${() => act.choose({ full: full ? null : name })}>${full ? "⤡" : "⤢"}</button>`}</span></header>
    <div class="body">${children}</div>
  </section>`;
}
