// The page of one run: what is new arrives as events, samples are compared, curves are zoomed.
import {renew, tell, texts, viewer} from './page.js';
import {Diagram} from './curves/curves.js';

const {id, cursor, status: first, samples} = JSON.parse(document.getElementById('run').textContent);
const here = `/runs/${encodeURIComponent(id)}`;
const words = texts.run;
const $ = name => document.getElementById(name);

// ---------------------------------------------------------------- samples
const shots = $('shots'), slider = $('step'), select = document.querySelector('#steps select[name=step]'), other = $('other');
const address = (file, side) => `${here}/samples/${encodeURIComponent(file)}${side ? `?side=${side}` : ''}`;
const mode = () => document.querySelector('[name=mode]:checked')?.value ?? 'one';

function frame(row, at, kind) {
  const link = document.createElement('a'), file = row.files[at];
  link.className = `frame ${kind}`;
  link.dataset.step = words.at.replace('{step}', samples.steps[at]);
  if (file) {
    const image = document.createElement('img');
    image.src = address(file, 400), image.alt = `${link.dataset.step}: ${row.prompt}`;
    link.href = address(file), link.append(image);
  } else {
    link.append(Object.assign(document.createElement('span'), {className: 'blank faint', textContent: '–'}));
  }
  return link;
}

function showSamples() {
  const at = Number(slider.value), against = other.selectedIndex, how = mode();
  select.value = samples.steps[at];
  for (const figure of shots.children) {
    const row = samples.rows[figure.dataset.row], frames = figure.querySelector('.frames');
    frames.className = `frames ${how}`;
    frames.querySelectorAll('.now, .then').forEach(old => old.remove());
    frames.prepend(frame(row, at, 'now'), ...(how === 'one' ? [] : [frame(row, against, 'then')]));
  }
  document.querySelector('.other').hidden = how === 'one';
  document.querySelector('.over').hidden = how !== 'over';
  shots.style.setProperty('--share', `${$('share').value}%`);
}

function takeSamples(event) {
  const step = event.step;
  if (!Number.isInteger(step)) return;
  if (!samples.steps.length) return location.reload();  // the first ones: the page has no place for them yet
  const wasLast = Number(slider.value) === samples.steps.length - 1;
  let at = samples.steps.indexOf(step);
  if (at < 0) {
    at = samples.steps.findIndex(each => each > step);
    at = at < 0 ? samples.steps.length : at;
    samples.steps.splice(at, 0, step);
    samples.rows.forEach(row => row.files.splice(at, 0, null));
    for (const [list, place] of [[select, samples.steps.length - 1 - at], [other, at]]) list.add(new Option(step), place);
    slider.max = samples.steps.length - 1;
  }
  (event.files ?? []).forEach((file, index) => {
    const row = samples.rows.find(each => each.index === Number(/_(\d+)\.\w+$/.exec(file)?.[1] ?? index));
    if (row) row.files[at] = file;
  });
  if (wasLast) slider.value = samples.steps.length - 1;
  showSamples();
}

if (slider) {
  slider.hidden = $('modes').hidden = false;
  slider.addEventListener('input', showSamples);
  select.addEventListener('change', () => { slider.value = samples.steps.indexOf(Number(select.value)); showSamples(); });
  for (const input of [...document.querySelectorAll('[name=mode]'), other, $('share')]) input.addEventListener('input', showSamples);
  let figure = null;  // of the sample that is shown large; its links are made again with each step
  const caption = link => {
    figure = link.closest('figure');
    return `${link.dataset.step ?? ''} ${figure.querySelector('figcaption').textContent}`;
  };
  const enlarge = viewer(caption, (_, by) => {
    slider.value = Number(slider.value) + by;
    showSamples();
    return figure.querySelector('.now[href]');
  });
  shots.addEventListener('click', event => enlarge(event, event.target.closest('a.frame[href]')));
}

// ---------------------------------------------------------------- curves
const plots = new Map();
let range = null, marked = [], latest = [], fetching = null;
const shared = {
  share: () => Number($('smooth').value) / 100, log: () => $('log').checked, marks: () => marked, texts: {step: 'step'},
  zoomed: (from, to) => { range = from === null ? null : [from, to]; fetchCurves(); },
};

async function fetchCurves() {
  fetching?.abort();
  fetching = new AbortController();
  const part = range ? `&from=${range[0]}&to=${range[1]}` : '';
  try {
    const answer = await fetch(`${here}/curves?points=${Math.min(1200, innerWidth)}${part}`, {signal: fetching.signal});
    if (answer.ok) latest = await answer.json(), draw();
  } catch (error) {
    if (error.name !== 'AbortError') tell(words.failed, true);
  }
}

function draw() {
  marked = latest.marks ?? [];
  $('curve-control').hidden = !latest.diagrams?.length;
  for (const {title, exact, curves, left_out} of latest.diagrams ?? []) {
    if (!plots.has(title)) plots.set(title, new Diagram($('plots'), title, shared));
    plots.get(title).show(curves, exact, left_out.length ? words.not_drawn.replace('{names}', left_out.join(', ')) : '');
  }
}

// A new row is a bucket of its own at the end; after some hundred the server makes fewer of them.
let added = 0;
function takeRows(rows) {
  if (range || !latest.diagrams) return;
  if (!latest.diagrams.length || (added += rows.length) > 400) return added = 0, fetchCurves();
  const curves = latest.diagrams.flatMap(diagram => diagram.curves);
  for (const row of rows) {
    for (const curve of curves) {
      if (!(curve.name in row) || row.step <= curve.steps.at(-1)) continue;
      curve.steps.push(row.step);
      for (const kind of ['low', 'high', 'mean']) curve[kind].push(row[curve.name]);
    }
  }
  draw();
}

for (const name of ['smooth', 'log']) $(name)?.addEventListener('input', draw);
$('whole')?.addEventListener('click', () => shared.zoomed(null));
document.addEventListener('themechange', () => { plots.forEach(plot => { plot.names = ''; }); draw(); });
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => document.dispatchEvent(new Event('themechange')));

// ---------------------------------------------------------------- what is new
const facts = {loss: status => status.loss?.toPrecision(4), speed: status => status.step_s && `${status.step_s.toPrecision(3)} s per step`};

function showStatus(status) {
  if (status.status !== first.status) return location.reload();  // other buttons, other facts
  if (status.loss !== null && !document.querySelector('[data-fact=loss]')) return renew('#state', 'dl.facts');
  for (const [name, text] of Object.entries(facts)) {
    const place = document.querySelector(`[data-fact=${name}]`);
    if (place && text(status)) place.textContent = text(status);
  }
  const bar = $('state').querySelector('progress'), steps = $('state').querySelector('.steps'), left = $('state').querySelector('.faint');
  if (bar && status.steps) bar.value = status.step / status.steps;
  if (steps && status.step !== null) steps.textContent = status.step.toLocaleString('en') + (status.steps ? ` / ${status.steps.toLocaleString('en')}` : '');
  if (left && status.eta) left.textContent = left.textContent.replace(/^\S+/, status.eta);
}

let seen = cursor;
function take(news) {
  if (news.anew) fetchCurves();
  if (news.rows) takeRows(news.rows);
  for (const event of news.events ?? []) {
    if (event.event === 'sample') takeSamples(event);
    if (Number.isInteger(event.step) && event.event !== 'memory') marked.push([event.step, event.event]);
    if (event.event === 'warning') renew('#notices');
    if (['sample', 'save'].includes(event.event)) renew('#state', 'dl.facts', '#files');
  }
  const tail = $('tail');
  if (news.log && tail) {
    const isAtEnd = tail.scrollHeight - tail.scrollTop - tail.clientHeight < 40;
    tail.textContent = ((news.log_anew ? '' : tail.textContent) + news.log).slice(-65536);
    if (isAtEnd) tail.scrollTop = tail.scrollHeight;
  }
  showStatus(news.status);
}

let failures = 0;
function listen() {
  const stream = new EventSource(`${here}/live?since=${encodeURIComponent(seen)}`);
  stream.onmessage = message => {
    failures = 0, seen = message.lastEventId;
    take(JSON.parse(message.data));
  };
  stream.onerror = () => {  // an EventSource would go on from its own last id; a new one also after a restart
    stream.close();
    if (++failures < 3) return setTimeout(listen, 1000 * failures);
    tell(words.cut);
    ask();
  };
}

async function ask() {
  try {
    const answer = await fetch(`${here}/news?since=${encodeURIComponent(seen)}`, {headers: {accept: 'application/json'}});
    if (answer.status === 404) return tell(words.gone, true);
    if (answer.ok) {
      const news = await answer.json();
      seen = news.cursor, take(news), tell('');
      if (++failures > 30) return failures = 0, listen();
    }
  } catch { /* the page is down: asked again below */ }
  setTimeout(ask, 2000);
}

document.addEventListener('click', async event => {
  const link = event.target.closest('[data-hash]');
  if (!link) return;
  event.preventDefault();
  const answer = await fetch(link.href);
  link.replaceWith(Object.assign(document.createElement('code'), {textContent: answer.ok ? await answer.text() : '–'}));
});

const tail = $('tail');
if (tail) tail.scrollTop = tail.scrollHeight;
fetchCurves();
listen();
