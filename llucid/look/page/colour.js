// @ts-check
// Colour maps that are perceptually uniform by construction: straight lines of lightness in OKLab (Ottosson 2020).

/** @type {(l: number, c: number, h: number) => [number, number, number]} sRGB, 0 to 255, of a colour in OKLCH */
export function oklch(l, c, h) {
  const a = c * Math.cos((h * Math.PI) / 180), b = c * Math.sin((h * Math.PI) / 180);
  const x = (l + 0.3963377774 * a + 0.2158037573 * b) ** 3;
  const y = (l - 0.1055613458 * a - 0.0638541728 * b) ** 3;
  const z = (l - 0.0894841775 * a - 1.291485548 * b) ** 3;
  const linear = [
    4.0767416621 * x - 3.3077115913 * y + 0.2309699292 * z,
    -1.2684380046 * x + 2.6097574011 * y - 0.3413193965 * z,
    -0.0041960863 * x - 0.7034186147 * y + 1.707614701 * z,
  ];
  const [red, green, blue] = linear.map((v) => {
    const u = Math.min(1, Math.max(0, v));
    return Math.round(255 * (u <= 0.0031308 ? 12.92 * u : 1.055 * u ** (1 / 2.4) - 0.055));
  });
  return [red, green, blue];
}

/** @typedef {{rgb: Uint8ClampedArray, light: Float32Array, dim: Uint8Array}} Ramp 256 colours (3 bytes each), their lightness, and 1 where white is read better on them than black */

/** @type {(v: number) => number} a component of sRGB as an amount of light */
const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);

/** @type {(at: (t: number) => [number, number, number]) => Ramp} */
function ramp(at) {
  const rgb = new Uint8ClampedArray(768), light = new Float32Array(256), dim = new Uint8Array(256);
  for (let i = 0; i < 256; i++) {
    const lch = at(i / 255);
    rgb.set(oklch(...lch), 3 * i);
    light[i] = lch[0];
    const [red, green, blue] = [...rgb.slice(3 * i, 3 * i + 3)].map((v) => linear(v / 255));
    // Relative luminance (WCAG 2.2), where black and white have the same contrast.
    dim[i] = 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.179 ? 1 : 0;
  }
  return { rgb, light, dim };
}

/** @type {(a: number, b: number, t: number) => number} */
const mix = (a, b, t) => a + (b - a) * t;

/** From nothing (the colour of the paper) to much: for probabilities and whatever else is never below 0. */
const SEQUENTIAL = {
  light: ramp((t) => [mix(0.98, 0.39, t), 0.004 + 0.118 * Math.sin(Math.PI * 0.62 * t ** 0.9), mix(246, 264, t)]),
  dark: ramp((t) => [mix(0.25, 0.84, t), 0.012 + 0.1 * Math.sin(Math.PI * 0.8 * t ** 0.9), mix(264, 232, t)]),
};
/** Blue below 0, brown above: told apart by the colour-blind too, and equally far from the paper in lightness. */
const DIVERGING = {
  light: ramp((t) => (t < 0.5 ? [mix(0.43, 0.97, 2 * t), 0.155 * (1 - 2 * t), 255] : [mix(0.97, 0.43, 2 * t - 1), 0.13 * (2 * t - 1), 48])),
  dark: ramp((t) => (t < 0.5 ? [mix(0.83, 0.235, 2 * t), 0.12 * (1 - 2 * t), 240] : [mix(0.235, 0.83, 2 * t - 1), 0.125 * (2 * t - 1), 62])),
};

/** @type {(kind: "sequential" | "diverging", dark: boolean) => Ramp} */
export function colours(kind, dark) {
  return (kind === "sequential" ? SEQUENTIAL : DIVERGING)[dark ? "dark" : "light"];
}

/** @type {(t: number) => number} */
const step = (t) => Math.max(0, Math.min(255, Math.round(255 * t)));

/** @type {(map: Ramp, t: number) => string} the colour at t, from 0 to 1, as CSS writes it */
export function css(map, t) {
  const i = 3 * step(t);
  return `rgb(${map.rgb[i]} ${map.rgb[i + 1]} ${map.rgb[i + 2]})`;
}

/** @type {(map: Ramp, t: number) => string} black or white: what can be read on the colour at t */
export function ink(map, t) {
  return map.dim[step(t)] ? "#ffffff" : "#000000";
}

/** Surprise and probability are drawn by their square root, so that small ones are seen too. */
export const root = Math.sqrt;

/** @type {(number: number, digits?: number) => string} a number as short as it can be read */
export function short(number, digits = 3) {
  if (!Number.isFinite(number)) return Number.isNaN(number) ? "NaN" : number > 0 ? "∞" : "−∞";
  const size = Math.abs(number);
  const text = size === 0 ? "0" : size >= 1e5 || size < 1e-3 ? number.toExponential(1) : number.toPrecision(digits);
  return (text.includes(".") && !text.includes("e") ? text.replace(/0+$/, "").replace(/\.$/, "") : text.replace("e+", "e")).replace("-", "−");
}

/** @type {(n: number) => string} a count with its unit, as in 620 k */
export function size(n) {
  const [unit, divisor] = n >= 999.5e6 ? ["G", 1e9] : n >= 999.5e3 ? ["M", 1e6] : n >= 999.5 ? ["k", 1e3] : ["", 1];
  return `${short(n / Number(divisor))} ${unit}`;
}

/** @type {(p: number) => string} a probability in per cent */
export function percent(p) {
  return p >= 0.9995 ? "100 %" : p >= 0.0995 ? `${(100 * p).toFixed(0)} %` : p >= 0.00095 ? `${(100 * p).toFixed(1)} %` : p === 0 ? "0" : "< 0.1 %";
}

/** @type {(p: number) => string} by how much a probability changed */
export function change(p) {
  return Math.abs(p) < 0.00095 ? "≈ 0" : (p > 0 ? "+" : "−") + percent(Math.abs(p));
}

const PICTURES = /** @type {Record<string, string>} */ ({ "\n": "↵", "\t": "⇥", "\r": "␍", "\u007f": "␡", "\u00a0": "⍽" });

/** @type {(piece: string) => string} a token's text with its blanks and control characters visible */
export function visible(piece) {
  if (piece === "") return "∅";
  return piece
    .replace(/^ | $/g, "·")
    .replace(/[\u0000-\u001f\u007f\u00a0]/g, (c) => PICTURES[c] ?? String.fromCharCode(0x2400 + c.charCodeAt(0)))
    .replace(/[\u0080-\u009f\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]/g, (c) => `⟨${c.charCodeAt(0).toString(16)}⟩`);
}
