// Files that are chosen, dropped or pasted: sent in pieces that go on where they were, folders with all that is in them.
import {all, one, shown, texts} from '/static/page.js';

const words = texts.datasets;
const main = one('#main');
/** @type {(text: string, values: Record<string, string | number | undefined>) => string} */
export const say = (text, values) => text.replace(/\{(\w+)\}/g, (_, key) => String(values[key] ?? ''));
/** @returns {Answer} */
export const offline = () => ({ok: false, status: 0, detail: words.offline});

/**
 * @param {string} address
 * @param {RequestInit} options
 * @returns {Promise<Answer>}
 */
export async function ask(address, options = {}) {
  const answer = await fetch(address, {...options, headers: {accept: 'application/json'}});
  const text = await answer.text();
  let data = {};
  try {
    data = JSON.parse(text);
  } catch {
    data = {detail: text.trim()};
  }
  return {ok: answer.ok, status: answer.status, ...data};
}

const table = Array.from({length: 256}, (_, byte) => {
  for (let bit = 0; bit < 8; bit++) byte = byte & 1 ? (byte >>> 1) ^ 0xedb88320 : byte >>> 1;
  return byte;
});
/**
 * CRC-32 as of zlib; crypto.subtle is not there over plain http.
 * @param {Uint8Array} bytes
 */
function crc(bytes, start = 0) {
  let value = ~start;
  for (const byte of bytes) value = table[(value ^ byte) & 255] ^ (value >>> 8);
  return ~value >>> 0;
}
/** @param {number} value */
const hex = value => value.toString(16).padStart(8, '0');
/** @type {(file: File, from: number, to: number) => Promise<Uint8Array<ArrayBuffer>>} */
const bytesOf = async (file, from, to) => new Uint8Array(await file.slice(from, to).arrayBuffer());
/** @param {number} seconds */
const pause = seconds => new Promise(done => setTimeout(done, seconds * 1000));

/** @type {HTMLFormElement[]} */
const drops = all('[data-upload]');
/** @type {(drop: HTMLElement) => HTMLInputElement | HTMLSelectElement | null} */
const intoField = drop => drop.querySelector('[name=into]');
/** @type {(drop: HTMLElement) => HTMLInputElement} */
const fileField = drop => one('[name=file]', drop);
/** @type {Map<string, string>} */
const renamed = new Map(); // the names that images got, for their captions
/** @param {string} name */
const stem = name => name.replace(/\.[^.]*$/, '');
/** @param {HTMLElement} drop */
const upload = drop => drop.dataset.upload ?? '';
/** @param {HTMLElement} drop */
const at = drop => upload(drop).replace(/\/upload$/, ''); // the page of the dataset
/** @type {(drop: HTMLElement, shown: Sent['shown'], named: string[][]) => Promise<Answer>} */
const announce = (drop, shown, named) =>
  persistent(shown, `${at(drop)}/announce`, {method: 'POST', body: new URLSearchParams(named)});
/** @param {string} address */
const kept = address => `sent ${address}`; // what became of files, over the reload that shows them among the others

/** @type {(drop: HTMLElement, name: string, text: string, isBad: boolean) => {item: HTMLElement, note: HTMLElement}} */
function line(drop, name, text, isBad) {
  const item = document.createElement('li');
  const [strong, note] = [document.createElement('span'), document.createElement('span')];
  strong.className = 'name';
  strong.textContent = strong.title = shown(name);
  note.textContent = shown(text);
  note.className = isBad ? 'bad' : 'faint';
  item.append(strong, note);
  one('.sent', drop).append(item);
  return {item, note};
}

/**
 * @param {HTMLElement} drop
 * @param {File} file
 */
export function row(drop, file) {
  const {item, note} = line(drop, file.name, '', false);
  if (file.type.startsWith('image/')) {
    // it is seen before it has arrived
    const image = Object.assign(document.createElement('img'), {src: URL.createObjectURL(file), alt: ''});
    image.addEventListener('error', () => image.remove());
    item.prepend(image);
  }
  const bar = Object.assign(document.createElement('progress'), {max: 1, value: 0, ariaLabel: file.name});
  const cancel = Object.assign(document.createElement('button'), {
    type: 'button',
    textContent: words.cancel,
    ariaLabel: `${words.cancel}: ${file.name}`,
  });
  note.before(bar);
  item.append(cancel);
  const stop = new AbortController();
  /** @type {[name: string, text: string, isBad: boolean][]} */
  const told = [];
  cancel.addEventListener('click', () => stop.abort());
  return {
    stop: stop.signal,
    told,
    /** @param {number} share */
    at(share) {
      bar.value = share;
      note.textContent = say(words.sending, {percent: Math.floor(share * 100)});
    },
    /** @param {string} text */
    note(text) {
      note.textContent = text;
    },
    /** @param {string} text */
    end(text, isBad = false, isNews = isBad) {
      bar.remove();
      cancel.remove();
      note.textContent = text;
      note.className = isBad ? 'bad' : 'faint';
      if (isNews) told.push([file.name, text, isBad]);
    },
  };
}

/**
 * Asks until the page answers, or the file is cancelled.
 * @param {Sent['shown']} shown
 * @param {string} address
 * @param {RequestInit} options
 */
async function persistent(shown, address, options = {}) {
  for (let wait = 1; ; wait = Math.min(wait * 2, 15)) {
    try {
      const answer = await ask(address, {...options, signal: shown.stop});
      if (answer.status < 500 || answer.status === 507) return answer;
    } catch (error) {
      if (shown.stop.aborted) throw error;
    }
    shown.note(words.waits);
    await pause(wait);
    shown.stop.throwIfAborted();
  }
}

/** @type {(drop: HTMLElement, file: Sent, into: string) => Promise<void>} */
async function send(drop, file, into) {
  const {shown} = file;
  const piece = Number(drop.dataset.piece);
  const mine = `${into}/${stem(file.name)}`;
  const name = (renamed.get(mine) ?? stem(file.name)) + file.name.slice(stem(file.name).length);
  try {
    const key = `${file.lastModified}-${hex(crc(await bytesOf(file, 0, 65536)))}`;
    const query = new URLSearchParams({name, size: String(file.size), into, key, sent: file.name});
    let answer = await persistent(shown, `${upload(drop)}?${query}`);
    let offset = answer.offset ?? 0;
    let sum = 0;
    for (let at = 0; at < offset; at += piece) sum = crc(await bytesOf(file, at, Math.min(at + piece, offset)), sum);
    if (offset && hex(sum) !== answer.hash) offset = 0; // the part of another file of this name and size
    while (answer.status < 400 || answer.status === 409) {
      const bytes = await bytesOf(file, offset, offset + piece);
      const address = `${upload(drop)}?${query}&offset=${offset}&hash=${hex(crc(bytes))}`;
      answer = await persistent(shown, address, {method: 'POST', body: bytes});
      offset = answer.offset ?? offset;
      shown.at(file.size ? offset / file.size : 1);
      if (answer.told) break;
    }
    while (answer.told?.state === 'checking') {
      shown.note(say(words.checking, {count: answer.told.count}));
      await pause(1);
      answer = await persistent(shown, `${upload(drop)}?${query}`);
    }
    if (!answer.told)
      await announce(drop, shown, [
        ['into', into],
        ['not', file.name],
      ]); // it was refused
    const files = answer.told?.files ?? [{name: file.name, state: 'refused', text: answer.detail ?? ''}];
    const [{state, text}] = files;
    if (files.length === 1) {
      shown.end(say(words.states[state], {text}), state === 'refused', state !== 'added');
      if (['renamed', 'same'].includes(state) && !/\.(txt|caption|json)$/i.test(name)) renamed.set(mine, stem(text));
    } else {
      shown.end(say(words.checking, {count: files.length}));
      for (const each of files.filter(one => one.state === 'refused').slice(0, 50))
        shown.told.push([each.name, say(words.states.refused, {text: each.text}), true]);
    }
  } catch (error) {
    ask(`${at(drop)}/announce`, {method: 'POST', body: new URLSearchParams({into, not: file.name})}).catch(() => {});
    const text = error instanceof Error ? error.message : String(error);
    shown.end(shown.stop.aborted ? words.cancelled : say(words.states.refused, {text}), true);
  }
}

let sending = 0;
addEventListener('beforeunload', event => {
  if (sending) event.preventDefault();
});

/**
 * The first page has no dataset yet: it is called as the folder that was dropped, and is one of pairs where that is one.
 * @param {HTMLElement} drop
 * @param {Sent[]} files
 */
async function begin(drop, files) {
  const kind = ['before', 'after'].every(side => files.some(file => file.place === side)) ? 'pairs' : 'character';
  for (const wanted of files[0].root ? [files[0].root, words.first] : [words.first]) {
    for (let count = 1; count < 100; count++) {
      const name = count > 1 ? `${wanted}_${count}` : wanted;
      const answer = await ask('/datasets', {method: 'POST', body: new URLSearchParams({name, kind})});
      if (answer.ok) return (drop.dataset.upload = `/datasets/${encodeURIComponent(name)}/upload`);
    }
  }
}

/**
 * @param {HTMLFormElement} drop
 * @param {Iterable<File>} files
 */
async function sendAll(drop, files) {
  const skipped = new RegExp(`^(?:${drop.dataset.skipped})$`);
  /** @param {File} file */
  const isText = file => /\.(txt|caption|json|csv|tsv|jsonl)$/i.test(file.name);
  const wanted = /** @type {Sent[]} */ ([...files]).filter(file => !skipped.test(file.name));
  const sorted = [...wanted.filter(file => !isText(file)), ...wanted.filter(isText)];
  if (!sorted.length || (!drop.dataset.upload && !(await begin(drop, sorted)))) return;
  sending += 1;
  const own = intoField(drop)?.value ?? '';
  const sides = ['before', 'after'];
  const name = decodeURIComponent(at(drop).split('/').at(-1) ?? '');
  const isPairs = drops.length > 1 || sides.every(side => sorted.some(file => file.place === side));
  /** @param {string} place */
  const isFolder = place => (isPairs && sides.includes(place)) || (/^\d+_./.test(place) && place !== name);
  /** @param {Sent} file */
  const intoOf = ({place = ''}) => (isFolder(place) ? place : own);
  for (const file of sorted) file.shown = row(drop, file);
  for (const into of new Set(sorted.map(intoOf))) {
    const names = sorted
      .filter(file => intoOf(file) === into)
      .slice(0, 5000)
      .map(file => ['name', file.name]);
    await announce(drop, sorted[0].shown, [['into', into], ...names]).catch(() => {}); // so that what a cut leaves out is known
  }
  const arrived = one('.arrived', drop);
  const inside = drop.querySelector('h2 .num');
  const before = Number(inside?.textContent);
  let counted = 0; // images that are new
  for (const [done, file] of sorted.entries()) {
    arrived.hidden = false;
    arrived.textContent = say(words.of, {done, all: sorted.length});
    await send(drop, file, intoOf(file));
    if (!isText(file) && !file.shown.told.some(each => each[2])) counted += 1;
    if (inside) inside.textContent = String(before + counted);
  }
  arrived.textContent = say(words.of, {done: sorted.length, all: sorted.length});
  const told = JSON.parse(sessionStorage.getItem(kept(at(drop))) ?? '[]');
  told.push(...sorted.flatMap(file => file.shown.told.map(each => [drops.indexOf(drop), ...each])));
  try {
    sessionStorage.setItem(kept(at(drop)), JSON.stringify(told));
  } catch {
    /* the list is below all the same */
  }
  sending -= 1;
  if (sending) return; // the other side goes on
  if (at(drop) !== location.pathname) return location.assign(at(drop));
  if (!one('form.caption:not(.clean)')) return location.reload();
  const again = Object.assign(document.createElement('a'), {
    className: 'button main',
    href: location.href,
    textContent: words.reload,
  });
  one('.sent', drop).before(again);
}

/**
 * The files of what was dropped, each with the name of the folder that it was in, and of the outermost one.
 * @param {DataTransferItemList} items
 */
async function filesOf(items) {
  const entries = [...items].map(item => item.webkitGetAsEntry());
  /** @type {File[]} */
  const found = [];
  /** @type {(entry: FileSystemEntry, place: string, root: string) => Promise<void>} */
  const walk = async (entry, place, root) => {
    if (entry.isFile) {
      const file = await new Promise((done, fail) => /** @type {FileSystemFileEntry} */ (entry).file(done, fail));
      found.push(Object.assign(file, {place, root}));
      return;
    }
    if (entry.name.startsWith('.') || entry.name === '__MACOSX') return;
    const reader = /** @type {FileSystemDirectoryEntry} */ (entry).createReader();
    for (;;) {
      /** @type {FileSystemEntry[]} */
      const some = await new Promise((done, fail) => reader.readEntries(done, fail));
      if (!some.length) return;
      for (const each of some) await walk(each, entry.name, root || entry.name);
    }
  };
  for (const entry of entries) if (entry) await walk(entry, '', '');
  return found;
}

const again = one('.again');
if (again) {
  const [place] = (again.dataset.into ?? '').split('/');
  const drop = drops.find(each => intoField(each)?.value === place) ?? drops[0];
  again.hidden = false;
  again.addEventListener('click', () => fileField(drop).click());
}
for (const drop of drops) {
  one('button', drop).hidden = true;
  drop.classList.add('ready');
  fileField(drop).addEventListener('change', () => sendAll(drop, fileField(drop).files ?? []));
}
/** @type {('dragover' | 'dragleave' | 'drop')[]} */
const kinds = drops.length ? ['dragover', 'dragleave', 'drop'] : [];
for (const kind of kinds) {
  main.addEventListener(kind, event => {
    // anywhere on the page; of pairs the left half is before
    event.preventDefault();
    const drop = drops[drops.length > 1 && event.clientX > innerWidth / 2 ? 1 : 0];
    for (const each of drops) each.classList.toggle('over', each === drop && kind === 'dragover');
    if (kind === 'drop' && event.dataTransfer) filesOf(event.dataTransfer.items).then(files => sendAll(drop, files));
  });
}
document.addEventListener('paste', ({target, clipboardData}) => {
  const isText = /** @type {Element} */ (target).matches('textarea, input') && clipboardData?.getData('text');
  if (drops.length && clipboardData?.files.length && !isText) sendAll(drops[drops.length - 1], clipboardData.files);
});
/** @type {[place: number, name: string, text: string, isBad: boolean][]} */
const arrivedBefore = JSON.parse(sessionStorage.getItem(kept(location.pathname)) ?? '[]');
for (const [place, name, text, isBad] of arrivedBefore) if (drops[place]) line(drops[place], name, text, isBad);
sessionStorage.removeItem(kept(location.pathname));
