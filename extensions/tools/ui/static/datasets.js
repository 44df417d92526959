// One dataset: captions saved in place, files sent in pieces that go on where they were, keys between images.
import {renew, shown, tell, texts, viewer} from '/static/page.js';

const words = texts.datasets;
const say = (text, values = {}) => text.replace(/\{(\w+)\}/g, (_, key) => values[key] ?? '');
const here = location.pathname;
const main = document.getElementById('main');

async function ask(address, options = {}) {
  const answer = await fetch(address, {...options, headers: {accept: 'application/json'}});
  const text = await answer.text();
  let data = {};
  try { data = JSON.parse(text); } catch { data = {detail: text.trim()}; }
  return {ok: answer.ok, status: answer.status, ...data};
}

// ---- captions

const NEXT = ['.counts', '#path', '.nexts'];  // what a first or a last caption changes

const undoForm = document.querySelector('.undoing');
function undoes(step) {  // the change that Undo takes back; empty: there is none
  undoForm.hidden = !step;
  undoForm.elements.step.value = step;
}

function mark(form) {
  const area = form.elements.caption, isDirty = area.value !== area.defaultValue;
  form.classList.toggle('clean', !isDirty);
  const short = form.querySelector('.short'), text = area.value.trim();
  short.textContent = text || short.dataset.none;
  if (text) short.className = 'short'; else if (short.className === 'short') short.className = 'short warn';
  if (isDirty) form.querySelector('[role=status]').textContent = words.unsaved;
  return isDirty;
}

async function save(form) {
  const {caption, name, version} = form.elements, note = form.querySelector('[role=status]');
  const before = caption.defaultValue, sent = caption.value;
  if (before === sent || form.classList.contains('busy')) return;
  form.classList.add('busy');
  try {
    const answer = await ask(form.action, {method: 'POST', body: new URLSearchParams(new FormData(form))});
    if (answer.ok) {
      version.value = answer.version;
      caption.defaultValue = sent;
      delete form.dataset.conflict;
      note.textContent = words.saved;
      note.className = 'good';
      setTimeout(() => { if (note.className === 'good') note.textContent = ''; }, 2500);
      undoes(answer.step);
      if (!before.trim() !== !sent.trim()) renew(...NEXT);
    } else if (answer.status === 409 && 'theirs' in answer) {
      version.value = answer.version;
      caption.defaultValue = answer.theirs;
      form.dataset.conflict = '';  // only who asks for it replaces what somebody else wrote
      note.textContent = say(words.conflict, answer);
      note.className = 'bad';
    } else {
      note.textContent = say(words.failed, {reason: answer.detail});
      note.className = 'bad';
    }
  } catch {
    note.textContent = words.offline;
    note.className = 'bad';
  }
  form.classList.remove('busy');
  const isClean = caption.value === caption.defaultValue;
  form.classList.toggle('clean', isClean);
  if (!isClean && note.className === 'good' && document.activeElement !== caption) save(form);  // typed meanwhile
}

for (const form of document.querySelectorAll('form.caption')) {
  mark(form);
  form.addEventListener('input', () => { form.querySelector('[role=status]').className = 'faint'; mark(form); });
  form.addEventListener('submit', event => { event.preventDefault(); save(form); });
  form.elements.caption.addEventListener('blur', () => { if (!('conflict' in form.dataset)) save(form); });
}
addEventListener('beforeunload', event => {
  if (sending || [...document.querySelectorAll('form.caption')].some(mark)) event.preventDefault();
});

undoForm?.addEventListener('submit', async event => {
  event.preventDefault();
  const sent = {method: 'POST', keepalive: true, body: new URLSearchParams({step: undoForm.elements.step.value})};
  const answer = await ask(undoForm.action, sent).catch(() => ({detail: words.offline}));
  if (!answer.ok) return tell(say(words.failed, {reason: answer.detail}), true);
  for (const form of document.querySelectorAll('form.caption')) {
    const {caption, name, version} = form.elements, now = answer.now[name.value];
    if (!now || caption.value !== caption.defaultValue) continue;  // what is being typed stays
    [version.value, caption.value] = now;
    caption.defaultValue = caption.value;
    form.querySelector('[role=status]').textContent = words.undone;
    mark(form);
  }
  undoes(answer.step);
  renew(...NEXT);
  tell(answer.failed ? say(words.not_undone, {count: answer.failed}) : words.undone, answer.failed > 0);
});

// ---- images

main.addEventListener('error', async event => {  // an image that cannot be decoded: the answer says why
  const view = event.target.closest?.('.view');
  if (!view) return;
  const answer = await ask(event.target.src).catch(() => ({detail: ''}));
  const why = Object.assign(document.createElement('span'), {className: 'bad why', textContent: answer.detail});
  view.replaceChildren(why);
}, true);

const all = document.querySelector('.all');  // where there are images
if (all) {
  const captioned = link => {
    const card = link.closest('.image, .orphan');
    return `${card.dataset.name} · ${card.querySelector('textarea')?.value ?? ''}`;
  };
  const enlarge = viewer(captioned, (link, by) => {
    const links = [...document.querySelectorAll('.view:has(img)')];
    return links[links.indexOf(link) + by];
  });
  main.addEventListener('click', event => {
    const area = event.target.closest('.image:not(.open)')?.querySelector('textarea');
    const isMeant = event.target.closest('.sheet') || (rows.matches('.desk') && event.target.closest('.view'));
    if (!area || !isMeant) return enlarge(event, event.target.closest('.view:has(img)'));
    event.preventDefault();
    write(area);
  });

  all.hidden = false;
  all.querySelector('input').addEventListener('change', event => {
    for (const box of document.querySelectorAll('[name=chosen]')) box.checked = event.target.checked;
  });
}

// ---- the desk: one image large, its caption below it, the others beside it

const rows = document.querySelector('.rows'), desk = document.getElementById('desk');
rows?.classList.add('live');
const areas = () => [...rows.querySelectorAll('textarea')];

function write(area) {
  area.focus();
  area.setSelectionRange(area.value.length, area.value.length);
}

function wordOf(texts) {  // for the subject: what a model was told, or what all captions begin with
  const firsts = texts.map(text => /^[^\s,.:]+/.exec(text.trim())?.[0]).filter(Boolean);
  return rows.dataset.trigger || (firsts.length > 2 && firsts.every(first => first === firsts[0]) ? firsts[0] : '');
}

function openDesk(card) {
  rows.querySelector('.open')?.classList.remove('open');
  rows.classList.add('desk');
  card.classList.add('open');
  const all = areas(), word = wordOf(all.map(area => area.value)), button = desk.querySelector('.word');
  desk.querySelector('.num').textContent = `${all.indexOf(card.querySelector('textarea')) + 1} / ${all.length}`;
  button.textContent = word;
  button.hidden = !word;
  card.querySelector('.sheet').append(desk);
  desk.hidden = false;
  card.scrollIntoView({block: 'nearest'});
}

function closeDesk() {
  rows.querySelector('.open')?.classList.remove('open');
  rows.classList.remove('desk');
  desk.hidden = true;
}

rows?.addEventListener('focusin', event => { if (event.target.name === 'caption') openDesk(event.target.closest('.image')); });
desk?.querySelector('.word').addEventListener('click', ({target}) => {
  const area = target.closest('.image').querySelector('textarea');
  if (!area.value.includes(target.textContent)) area.value = `${target.textContent}, ${area.value}`;
  area.dispatchEvent(new Event('input', {bubbles: true}));
  write(area);
});

document.addEventListener('keydown', event => {
  const card = document.activeElement.closest?.('.image'), area = card?.querySelector('textarea');
  if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === 's' && card) {
    event.preventDefault();
    save(card.querySelector('form.caption'));
  } else if (event.key === 'Escape' && area && card.matches('.open')) {
    closeDesk();
    card.focus();
  } else if (document.activeElement === area && area && (event.key === 'Tab' || (event.key === 'Enter' && (event.ctrlKey || event.metaKey)))) {
    const all = areas(), next = all[all.indexOf(area) + (event.shiftKey ? -1 : 1)];
    if (next || event.key === 'Enter') event.preventDefault();
    if (next) write(next);  // leaving a caption saves it
    else save(area.form);
  } else if (document.activeElement === card && card) {
    const cards = [...document.querySelectorAll('.image')], at = cards.indexOf(card);
    const by = {ArrowRight: 1, ArrowLeft: -1}[event.key], way = {ArrowDown: 1, ArrowUp: -1}[event.key];
    const off = other => way * (other.offsetTop - card.offsetTop), aside = other => Math.abs(other.offsetLeft - card.offsetLeft);
    const next = by ? cards[at + by] : way && cards.filter(other => off(other) > 0).sort((one, other) => off(one) - off(other) || aside(one) - aside(other))[0];
    if (event.key === 'Enter' && area) { event.preventDefault(); write(area); }
    if (event.key === ' ') { event.preventDefault(); card.querySelector('[name=chosen]')?.click(); }
    if (next) { event.preventDefault(); next.focus(); }
  }
});

if (location.hash === '#lint') document.querySelector('#lint')?.closest('details').setAttribute('open', '');
const lint = document.querySelector('[data-status=running]');
if (lint) {
  const look = setInterval(async () => {
    const answer = await ask(lint.dataset.lint).catch(() => ({status: 'running'}));
    if (answer.status === 'running' || [...document.querySelectorAll('form.caption')].some(mark)) return;
    clearInterval(look);
    location.hash = 'lint';  // opens the panel, see above
    location.reload();
  }, 1000);
}

// ---- files

const table = Array.from({length: 256}, (_, byte) => {
  for (let bit = 0; bit < 8; bit++) byte = byte & 1 ? (byte >>> 1) ^ 0xedb88320 : byte >>> 1;
  return byte;
});
function crc(bytes, start = 0) {  // CRC-32 as of zlib; crypto.subtle is not there over plain http
  let value = ~start;
  for (const byte of bytes) value = table[(value ^ byte) & 255] ^ (value >>> 8);
  return ~value >>> 0;
}
const hex = value => value.toString(16).padStart(8, '0');
const bytesOf = async (file, from, to) => new Uint8Array(await file.slice(from, to).arrayBuffer());
const pause = seconds => new Promise(done => setTimeout(done, seconds * 1000));

const drops = [...document.querySelectorAll('[data-upload]')];
const renamed = new Map();  // the names that images got, for their captions
const stem = name => name.replace(/\.[^.]*$/, '');
const announce = (shown, named) => persistent(shown, `${here}/announce`, {method: 'POST', body: new URLSearchParams(named)});
const kept = `sent ${here}`;  // what became of files, over the reload that shows them among the others

function line(drop, name, text, isBad) {
  const item = document.createElement('li'), strong = document.createElement('span'), note = document.createElement('span');
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
  if (file.type.startsWith('image/')) {  // it is seen before it has arrived
    const image = Object.assign(document.createElement('img'), {src: URL.createObjectURL(file), alt: ''});
    image.addEventListener('error', () => image.remove());
    item.prepend(image);
  }
  const bar = Object.assign(document.createElement('progress'), {max: 1, value: 0, ariaLabel: file.name});
  const cancel = Object.assign(document.createElement('button'), {type: 'button', textContent: words.cancel, ariaLabel: `${words.cancel}: ${file.name}`});
  note.before(bar);
  item.append(cancel);
  const stop = new AbortController(), told = [];
  cancel.addEventListener('click', () => stop.abort());
  return {
    stop: stop.signal, told,
    at(share) { bar.value = share; note.textContent = say(words.sending, {percent: Math.floor(share * 100)}); },
    note(text) { note.textContent = text; },
    end(text, isBad, isNews = isBad) {
      bar.remove(); cancel.remove(); note.textContent = text; note.className = isBad ? 'bad' : 'faint';
      if (isNews) told.push([file.name, text, isBad]);
    },
  };
}

async function persistent(shown, address, options) {  // until the page answers, or the file is cancelled
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
  const shown = file.shown, piece = Number(drop.dataset.piece);
  const name = (renamed.get(stem(file.name)) ?? stem(file.name)) + file.name.slice(stem(file.name).length);
  try {
    const key = `${file.lastModified}-${hex(crc(await bytesOf(file, 0, 65536)))}`;
    const query = new URLSearchParams({name, size: file.size, into, key, sent: file.name});
    let answer = await persistent(shown, `${drop.dataset.upload}?${query}`);
    let offset = answer.offset ?? 0, sum = 0;
    for (let at = 0; at < offset; at += piece) sum = crc(await bytesOf(file, at, Math.min(at + piece, offset)), sum);
    if (offset && hex(sum) !== answer.hash) offset = 0;  // the part of another file of this name and size
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
    if (!answer.told) await announce(shown, {into, not: file.name});  // it was refused
    const files = answer.told?.files ?? [{name: file.name, state: 'refused', text: answer.detail}];
    if (files.length === 1) shown.end(say(words.states[files[0].state], files[0]), files[0].state === 'refused', files[0].state !== 'added');
    else shown.end(say(words.checking, {count: files.length}));
    if (files.length > 1) for (const each of files.filter(one => one.state === 'refused').slice(0, 50)) shown.told.push([each.name, say(words.states.refused, each), true]);
    if (files.length === 1 && ['renamed', 'same'].includes(files[0].state) && !/\.(txt|caption|json)$/i.test(name)) {
      renamed.set(stem(file.name), stem(files[0].text));
    }
  } catch (error) {
    ask(`${here}/announce`, {method: 'POST', body: new URLSearchParams({into, not: file.name})}).catch(() => {});
    shown.end(shown.stop.aborted ? words.cancelled : say(words.states.refused, {text: error.message}), true);
  }
}

let sending = 0;
async function sendAll(drop, files) {
  const skipped = new RegExp(`^(?:${drop.dataset.skipped})$`);
  const into = drop.elements.into?.value ?? '', isText = file => /\.(txt|caption|json|csv|tsv|jsonl)$/i.test(file.name);
  const sorted = [...files].filter(file => !skipped.test(file.name)).sort((one, other) => isText(one) - isText(other));
  if (!sorted.length) return;
  sending += 1;
  for (const file of sorted) file.shown = row(drop, file);
  const names = sorted.slice(0, 5000).map(file => ['name', file.name]);  // so that what a cut leaves out is known
  await announce(sorted[0].shown, [['into', into], ...names]).catch(() => {});
  const arrived = drop.querySelector('.arrived'), inside = drop.querySelector('h2 .num'), before = Number(inside?.textContent);
  for (const [done, file] of sorted.entries()) {
    arrived.hidden = false;
    arrived.textContent = say(words.of, {done, all: sorted.length});
    await send(drop, file, into);
    if (inside) inside.textContent = before + done + 1 - sorted.slice(0, done + 1).filter(each => isText(each) || each.shown.told.some(one => one[2])).length;
  }
  arrived.textContent = say(words.of, {done: sorted.length, all: sorted.length});
  const told = JSON.parse(sessionStorage.getItem(kept) ?? '[]');
  told.push(...sorted.flatMap(file => file.shown.told.map(each => [drops.indexOf(drop), ...each])));
  try { sessionStorage.setItem(kept, JSON.stringify(told)); } catch { /* the list is below all the same */ }
  sending -= 1;
  if (sending) return;  // the other side goes on
  if (![...document.querySelectorAll('form.caption')].some(mark)) return location.reload();
  const again = Object.assign(document.createElement('a'), {className: 'button main', href: location.href, textContent: words.reload});
  drop.querySelector('.sent').before(again);
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
  drop.elements.file.addEventListener('change', () => { sendAll(drop, drop.elements.file.files); });
}
for (const kind of drops.length ? ['dragover', 'dragleave', 'drop'] : []) {
  main.addEventListener(kind, event => {  // anywhere on the page; of pairs the left half is before
    event.preventDefault();
    const drop = drops[drops.length > 1 && event.clientX > innerWidth / 2 ? 1 : 0];
    for (const each of drops) each.classList.toggle('over', each === drop && kind === 'dragover');
    if (kind === 'drop') sendAll(drop, event.dataTransfer.files);
  });
}
for (const [place, ...rest] of JSON.parse(sessionStorage.getItem(kept) ?? '[]')) if (drops[place]) line(drops[place], ...rest);
sessionStorage.removeItem(kept);
