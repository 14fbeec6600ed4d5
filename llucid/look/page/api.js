// @ts-check
// Asks the server, or the answers that an exported file carries. Answers never change, so each is asked for once.
import { useEffect, useMemo, useState } from "look/vendor/preact.js";

/** @typedef {import("look/types.js").Reading} Reading */
/** @typedef {import("look/types.js").Info} Info */
/** @typedef {import("look/types.js").Numbers} Numbers */
/** @typedef {import("look/types.js").State} State */
/** @typedef {{type: string, headers: Record<string, string>, body: string, gzip?: boolean, same?: string}} Kept */
/** @typedef {{promise: Promise<unknown>, value?: unknown}} Answer */

const element = document.getElementById("answers");
/** @type {{answers: Record<string, Kept>, left_out?: string[], state?: object} | null} */
const file = element ? JSON.parse(element.textContent ?? "") : null;
export const isFile = file !== null;
export const keptState = file?.state ?? {};
export const leftOut = file?.left_out ?? [];

/**
 * An address as the server and an exported file write it: parameters sorted by name, none of them at its default.
 * @param {string} path
 * @param {Record<string, string | number | null | undefined>} [parameters]
 */
export function address(path, parameters = {}) {
  const given = Object.entries(parameters).filter(([, value]) => value !== null && value !== undefined);
  const query = given.sort(([a], [b]) => (a < b ? -1 : 1)).map(([name, value]) => `${name}=${encodeURIComponent(String(value))}`);
  return `/look${path && `/${path}`}${query.length ? `?${query.join("&")}` : ""}`;
}

/** Whether there is an answer: a file has only some. @type {(url: string) => boolean} */
export const answered = (url) => !file || url in file.answers;

/** @type {Map<string, Answer>} */
const asked = new Map();
const REMEMBERED = 800;

/** @type {() => string[]} all addresses that were answered, the last used first, for the export */
export const addresses = () => [...asked].filter(([, answer]) => answer.value !== undefined).map(([url]) => url).reverse();

/** @type {(half: Uint16Array) => Float32Array} */
function widen(half) {
  return Float32Array.from(half, (bits) => {
    const sign = bits & 0x8000 ? -1 : 1, exponent = (bits >> 10) & 31, fraction = bits & 1023;
    if (exponent === 0) return sign * fraction * 2 ** -24;
    if (exponent === 31) return fraction ? NaN : sign * Infinity;
    return sign * 2 ** (exponent - 25) * (1024 + fraction);
  });
}

/** @type {(header: (name: string) => string | null | undefined, raw: Uint8Array<ArrayBuffer>) => Numbers} */
function numbers(header, raw) {
  const shape = JSON.parse(header("x-shape") ?? "[]"), pool = JSON.parse(header("x-pool") ?? "[]");
  const kind = header("x-dtype") ?? "f32", scale = Number(header("x-scale") ?? 1), offset = Number(header("x-offset") ?? 0);
  const data =
    kind === "u8" ? Float32Array.from(raw, (b) => offset + b * scale)
    : kind === "f16" ? widen(new Uint16Array(raw.buffer))
    : new Float32Array(raw.buffer);
  return { shape, pool, data, coarse: kind === "u8" || pool.some((/** @type {number} */ n) => n > 1) };
}

/** @type {(packed: Uint8Array<ArrayBuffer>) => Promise<Uint8Array<ArrayBuffer>>} */
async function unzipped(packed) {
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** @type {(response: Response) => Promise<string>} */
async function complaint(response) {
  const text = await response.text();
  try {
    return String(JSON.parse(text).error);
  } catch {
    return text.slice(0, 300) || `the server answered ${response.status}`;
  }
}

/** @type {(url: string, body?: object) => Promise<Response>} */
async function request(url, body) {
  const post = { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) };
  let response;
  try {
    response = await fetch(url, body && post);
  } catch {
    throw new Error("llucid look does not answer: has it been stopped?");
  }
  if (!response.ok) throw new Error(await complaint(response));
  return response;
}

/** @type {(url: string) => Promise<unknown>} */
async function ask(url) {
  if (file) {
    const kept = file.answers[url];
    if (!kept) throw new Error("This file does not hold it; llucid look shows it live.");
    const { body, gzip } = kept.same ? file.answers[kept.same] : kept;
    const packed = Uint8Array.from(atob(body), (c) => c.charCodeAt(0));
    const raw = gzip ? await unzipped(packed) : packed;
    if (kept.type.includes("json")) return JSON.parse(new TextDecoder().decode(raw));
    return numbers((name) => kept.headers[name], raw);
  }
  const response = await request(url);
  if (response.headers.get("content-type")?.includes("json")) return response.json();
  return numbers((name) => response.headers.get(name), new Uint8Array(await response.arrayBuffer()));
}

let waiting = 0;

/** Says on the page itself whether an answer is under way. @type {(more: 1 | -1) => void} */
function wait(more) {
  waiting += more;
  document.documentElement.toggleAttribute("data-waiting", waiting > 0);
}

/** What was asked already; it is now the last that will be forgotten. @type {(url: string) => Answer | undefined} */
function known(url) {
  const answer = asked.get(url);
  if (answer) {
    asked.delete(url);
    asked.set(url, answer);
  }
  return answer;
}

/** @type {(url: string) => Answer} */
function remembered(url) {
  const before = known(url);
  if (before) return before;
  /** @type {Answer} */
  const made = { promise: ask(url) };
  wait(1);
  made.promise.then(
    (value) => { made.value = value; wait(-1); },
    () => { asked.delete(url); wait(-1); },  // the server may have been away: it is asked again
  );
  asked.set(url, made);
  if (asked.size > REMEMBERED) asked.delete(/** @type {string} */ (asked.keys().next().value));
  return made;
}

/** @type {(url: string) => Promise<any>} */
export const get = (url) => remembered(url).promise;

/**
 * The answer to an address; while it is under way, the answer to the last one (`fresh` says which).
 * @param {string | null} url null asks for nothing
 * @returns {{value: any, fresh: boolean, error: string | null}}
 */
export function useAnswer(url) {
  const [held, hold] = useState(/** @type {{url: string | null, value: any, error: string | null}} */ ({ url: null, value: undefined, error: null }));
  useEffect(() => {
    if (url === null) return;
    let wanted = true;
    remembered(url).promise.then(
      (value) => wanted && hold({ url, value, error: null }),
      (error) => wanted && hold({ url, value: undefined, error: error.message }),
    );
    return () => { wanted = false; };
  }, [url]);
  if (url === null) return { value: undefined, fresh: true, error: null };
  const value = known(url)?.value ?? (held.url === url ? held.value : undefined); // held: what is shown is never forgotten
  if (value !== undefined) return { value, fresh: true, error: null };
  return { value: held.value, fresh: false, error: held.url === url ? held.error : null };
}

/**
 * Numbers of a reading, in the view of differences less those of the one beside it. The largest numbers of two blocks,
 * and two numbers of 8 bits, tell nothing of a difference: that is asked for.
 * @param {(reading: Reading, minus?: string) => string | null} of the address
 * @param {Pick<State, "run" | "beside" | "view">} state
 * @returns {{value: any, fresh: boolean, error: string | null, difference: boolean}}
 */
export function useNumbers(of, { run, beside, view }) {
  const other = view === "difference" ? beside : null;
  const here = useAnswer(of(run)), there = useAnswer(other && of(other));
  /** @type {Numbers | undefined} */
  const one = here.value;
  /** @type {Numbers | undefined} */
  const two = there.value;
  const difference = Boolean(one && two && String(one.shape) === String(two.shape)), coarse = difference && Boolean(one?.coarse || two?.coarse);
  const apart = useAnswer(coarse && other ? of(run, other.id) : null);
  const value = useMemo(() => one && two && difference ? { ...one, data: one.data.map((x, i) => (x === two.data[i] ? 0 : x - two.data[i])) } : one, [one, two, difference]);
  if (coarse) return { ...apart, difference };
  if (other && one && !late(here, there) && !difference) return { value: undefined, fresh: true, error: there.error ?? "The other one has another size here: there is no difference.", difference };
  return { value, fresh: here.fresh && !late(there), error: here.error, difference };
}

/** Whether one of the answers is still under way. @type {(...answers: {fresh: boolean, error: string | null}[]) => boolean} */
export const late = (...answers) => answers.some(({ fresh, error }) => !fresh && !error);

/** What the page was loaded with: of another server it asks nothing. @type {Promise<Info>} */
export const home = get(address(""));

/** @type {(url: string, body: object) => Promise<Reading>} makes a reading, and fetches it */
async function reading(url, body) {
  const { id } = await (await request(url, { ...body, first: (await home).first })).json();
  return get(address(id));
}

/** @type {(what: {text: string} | {ids: number[]} | {of: string}, model: number) => Promise<Reading>} */
export const read = (what, model) => reading(address("read"), { ...what, model });

/** @type {(id: string, changes: object[]) => Promise<Reading>} */
export const edit = (id, changes) => reading(address(`${id}/edit`), { changes });

/** @type {(id: string, beside: string | null, state: object) => Promise<Blob>} */
export const exportPage = async (id, beside, state) => (await request(address("export"), { id, beside, urls: addresses(), state })).blob();
