// Files that are chosen, dropped or pasted: sent in pieces that go on where they were, folders with all that is in them.
import {shown, texts} from '/static/page.js';

const words = texts.datasets,
  main = document.getElementById('main');
export const say = (text, values = {}) => text.replace(/\{(\w+)\}/g, (_, key) => values[key] ?? '');

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
function crc(bytes, start = 0) {
  // CRC-32 as of zlib; crypto.subtle is not there over plain http
  let value = ~start;
  for (const byte of bytes) value = table[(value ^ byte) & 255] ^ (value >>> 8);
  return ~value >>> 0;
}
const hex = value => value.toString(16).padStart(8, '0');
const bytesOf = async (file, from, to) => new Uint8Array(await file.slice(from, to).arrayBuffer());
const pause = seconds => new Promise(done => setTimeout(done, seconds * 1000));

const drops = [...document.querySelectorAll('[data-upload]')];
const renamed = new Map(); // the names that images got, for their captions
const stem = name => name.replace(/\.[^.]*$/, '');
const at = drop => drop.dataset.upload.replace(/\/upload$/, ''); // the page of the dataset
const announce = (drop, shown, named) =>
  persistent(shown, `${at(drop)}/announce`, {method: 'POST', body: new URLSearchParams(named)});
const kept = address => `sent ${address}`; // what became of files, over the reload that shows them among the others

function line(drop, name, text, isBad) {
  const item = document.createElement('li'),
    strong = document.createElement('span'),
    note = document.createElement('span');
  strong.className = 'name';
  strong.textContent = strong.title = shown(name);
  note.textContent = shown(text);
  note.className = isBad ? 'bad' : 'faint';
  item.append(strong, note);
  drop.querySelector('.sent').append(item);
  return {item, note};
}

function row(drop, file) {
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
  const stop = new AbortController(),
    told = [];
  cancel.addEventListener('click', () => stop.abort());
  return {
    stop: stop.signal,
    told,
    at(share) {
      bar.value = share;
      note.textContent = say(words.sending, {percent: Math.floor(share * 100)});
    },
    note(text) {
      note.textContent = text;
    },
    end(text, isBad, isNews = isBad) {
      bar.remove();
      cancel.remove();
      note.textContent = text;
      note.className = isBad ? 'bad' : 'faint';
      if (isNews) told.push([file.name, text, isBad]);
    },
  };
}

async function persistent(shown, address, options) {
  // until the page answers, or the file is cancelled
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

async function send(drop, file, into) {
  const shown = file.shown,
    piece = Number(drop.dataset.piece);
  const mine = `${into}/${stem(file.name)}`,
    name = (renamed.get(mine) ?? stem(file.name)) + file.name.slice(stem(file.name).length);
  try {
    const key = `${file.lastModified}-${hex(crc(await bytesOf(file, 0, 65536)))}`;
    const query = new URLSearchParams({name, size: file.size, into, key, sent: file.name});
    let answer = await persistent(shown, `${drop.dataset.upload}?${query}`);
    let offset = answer.offset ?? 0,
      sum = 0;
    for (let at = 0; at < offset; at += piece) sum = crc(await bytesOf(file, at, Math.min(at + piece, offset)), sum);
    if (offset && hex(sum) !== answer.hash) offset = 0; // the part of another file of this name and size
    while (answer.status < 400 || answer.status === 409) {
      const bytes = await bytesOf(file, offset, offset + piece);
      const address = `${drop.dataset.upload}?${query}&offset=${offset}&hash=${hex(crc(bytes))}`;
      answer = await persistent(shown, address, {method: 'POST', body: bytes});
      offset = answer.offset ?? offset;
      shown.at(file.size ? offset / file.size : 1);
      if (answer.told) break;
    }
    while (answer.told?.state === 'checking') {
      shown.note(say(words.checking, answer.told));
      await pause(1);
      answer = await persistent(shown, `${drop.dataset.upload}?${query}`);
    }
    if (!answer.told) await announce(drop, shown, {into, not: file.name}); // it was refused
    const files = answer.told?.files ?? [{name: file.name, state: 'refused', text: answer.detail}];
    if (files.length === 1)
      shown.end(say(words.states[files[0].state], files[0]), files[0].state === 'refused', files[0].state !== 'added');
    else shown.end(say(words.checking, {count: files.length}));
    if (files.length > 1)
      for (const each of files.filter(one => one.state === 'refused').slice(0, 50))
        shown.told.push([each.name, say(words.states.refused, each), true]);
    if (files.length === 1 && ['renamed', 'same'].includes(files[0].state) && !/\.(txt|caption|json)$/i.test(name)) {
      renamed.set(mine, stem(files[0].text));
    }
  } catch (error) {
    ask(`${at(drop)}/announce`, {method: 'POST', body: new URLSearchParams({into, not: file.name})}).catch(() => {});
    shown.end(shown.stop.aborted ? words.cancelled : say(words.states.refused, {text: error.message}), true);
  }
}

let sending = 0;
addEventListener('beforeunload', event => {
  if (sending) event.preventDefault();
});

// The first page has no dataset yet: it is called as the folder that was dropped, and is one of pairs where that is one.
async function begin(drop, files) {
  const kind = ['before', 'after'].every(side => files.some(file => file.place === side)) ? 'pairs' : 'character';
  for (const wanted of [files[0].root, words.first].filter(Boolean)) {
    for (let count = 1; count < 100; count++) {
      const name = count > 1 ? `${wanted}_${count}` : wanted;
      const answer = await ask('/datasets', {method: 'POST', body: new URLSearchParams({name, kind})});
      if (answer.ok) return (drop.dataset.upload = `/datasets/${encodeURIComponent(name)}/upload`);
    }
  }
}

async function sendAll(drop, files) {
  const skipped = new RegExp(`^(?:${drop.dataset.skipped})$`),
    isText = file => /\.(txt|caption|json|csv|tsv|jsonl)$/i.test(file.name);
  const sorted = [...files].filter(file => !skipped.test(file.name)).sort((one, other) => isText(one) - isText(other));
  if (!sorted.length || (!drop.dataset.upload && !(await begin(drop, sorted)))) return;
  sending += 1;
  const own = drop.elements.into?.value ?? '',
    sides = ['before', 'after'],
    name = decodeURIComponent(at(drop).split('/').at(-1));
  const isPairs = drops.length > 1 || sides.every(side => sorted.some(file => file.place === side));
  const isFolder = place => (isPairs && sides.includes(place)) || (/^\d+_./.test(place ?? '') && place !== name);
  const intoOf = file => (isFolder(file.place) ? file.place : own);
  for (const file of sorted) file.shown = row(drop, file);
  for (const into of new Set(sorted.map(intoOf))) {
    const names = sorted
      .filter(file => intoOf(file) === into)
      .slice(0, 5000)
      .map(file => ['name', file.name]);
    await announce(drop, sorted[0].shown, [['into', into], ...names]).catch(() => {}); // so that what a cut leaves out is known
  }
  const arrived = drop.querySelector('.arrived'),
    inside = drop.querySelector('h2 .num'),
    before = Number(inside?.textContent);
  for (const [done, file] of sorted.entries()) {
    arrived.hidden = false;
    arrived.textContent = say(words.of, {done, all: sorted.length});
    await send(drop, file, intoOf(file));
    if (inside)
      inside.textContent =
        before +
        done +
        1 -
        sorted.slice(0, done + 1).filter(each => isText(each) || each.shown.told.some(one => one[2])).length;
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
  if (![...document.querySelectorAll('form.caption')].some(form => !form.matches('.clean'))) return location.reload();
  const again = Object.assign(document.createElement('a'), {
    className: 'button main',
    href: location.href,
    textContent: words.reload,
  });
  drop.querySelector('.sent').before(again);
}

// The files of what was dropped, each with the name of the folder that it was in, and of the outermost one.
async function filesOf(items) {
  const entries = [...items].map(item => item.webkitGetAsEntry?.()).filter(Boolean),
    found = [];
  const walk = async (entry, place, root) => {
    if (entry.isFile)
      return found.push(Object.assign(await new Promise((done, fail) => entry.file(done, fail)), {place, root}));
    if (entry.name.startsWith('.') || entry.name === '__MACOSX') return;
    const reader = entry.createReader();
    for (let some; (some = await new Promise((done, fail) => reader.readEntries(done, fail))).length;) {
      for (const each of some) await walk(each, entry.name, root || entry.name);
    }
  };
  for (const entry of entries) await walk(entry, '', '');
  return found;
}

const again = document.querySelector('.again');
if (again) {
  const [place] = again.dataset.into.split('/');
  const drop = drops.find(each => each.elements.into?.value === place) ?? drops[0];
  again.hidden = false;
  again.addEventListener('click', () => drop.elements.file.click());
}
for (const drop of drops) {
  drop.querySelector('button').hidden = true;
  drop.classList.add('ready');
  drop.elements.file.addEventListener('change', () => {
    sendAll(drop, drop.elements.file.files);
  });
}
for (const kind of drops.length ? ['dragover', 'dragleave', 'drop'] : []) {
  main.addEventListener(kind, event => {
    // anywhere on the page; of pairs the left half is before
    event.preventDefault();
    const drop = drops[drops.length > 1 && event.clientX > innerWidth / 2 ? 1 : 0];
    for (const each of drops) each.classList.toggle('over', each === drop && kind === 'dragover');
    if (kind === 'drop') filesOf(event.dataTransfer.items).then(files => sendAll(drop, files));
  });
}
document.addEventListener('paste', ({target, clipboardData}) => {
  const isText = target.matches('textarea, input') && clipboardData.getData('text');
  if (drops.length && clipboardData.files.length && !isText) sendAll(drops.at(-1), clipboardData.files);
});
for (const [place, ...rest] of JSON.parse(sessionStorage.getItem(kept(location.pathname)) ?? '[]'))
  if (drops[place]) line(drops[place], ...rest);
sessionStorage.removeItem(kept(location.pathname));
