// The page of one run, live and as a report: samples are compared, curves are zoomed. What is new on a server: live.js.
import {Diagram} from './curves/curves.js';
import {viewer} from './viewer.js';

export const $ = name => document.getElementById(name);
export const data = JSON.parse($('data').textContent);
export const {here, words} = data;  // here: the page's address; empty: all that it shows is in it

// ---------------------------------------------------------------- samples
const samples = data.samples, shots = $('shots'), slider = $('step'), other = $('other');
const select = document.querySelector('#steps select[name=step]');
const mode = () => document.querySelector('[name=mode]:checked')?.value ?? 'one';

function frame(row, at, kind) {
  const link = document.createElement('a'), file = row.files[at];
  link.className = `frame ${kind}`;
  link.dataset.step = words.at.replace('{step}', samples.steps[at].toLocaleString('en'));
  if (file) {
    const image = document.createElement('img');
    link.href = here ? `${here}/samples/${encodeURIComponent(file)}` : file;
    image.src = here ? `${link.href}?side=400` : file;
    image.alt = `${link.dataset.step}: ${row.prompt}`;
    link.append(image);
  } else {
    link.append(Object.assign(document.createElement('span'), {className: 'blank faint', textContent: words.missing}));
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
    figure.querySelector('.drift').textContent = row.drift[at] ?? '';
  }
  document.querySelector('.other').hidden = how === 'one';
  document.querySelector('.over').hidden = how !== 'over';
  shots.style.setProperty('--share', `${$('share').value}%`);
}

export function takeSamples(event) {
  const step = event.step;
  if (!Number.isInteger(step)) return;
  if (!samples.steps.length) return location.reload();  // the first ones: the page has no place for them yet
  const wasLast = Number(slider.value) === samples.steps.length - 1;
  let at = samples.steps.indexOf(step);
  if (at < 0) {
    at = samples.steps.findIndex(each => each > step);
    at = at < 0 ? samples.steps.length : at;
    samples.steps.splice(at, 0, step);
    samples.rows.forEach(row => { row.files.splice(at, 0, null), row.drift.splice(at, 0, null); });
    for (const [list, place] of [[select, samples.steps.length - 1 - at], [other, at]]) list.add(new Option(step), place);
    slider.max = samples.steps.length - 1;
  }
  (event.files ?? []).forEach((file, index) => {
    const row = samples.rows.find(each => each.index === Number(/_(\d+)\.\w+$/.exec(file)?.[1] ?? index));
    if (row) row.files[at] = file, row.drift[at] = event.drift?.[index];
  });
  if (wasLast) slider.value = samples.steps.length - 1;
  showSamples();
}

if (slider) {
  slider.hidden = $('steps').hidden = $('modes').hidden = false;
  slider.addEventListener('input', showSamples);
  select.addEventListener('change', () => { slider.value = samples.steps.indexOf(Number(select.value)); showSamples(); });
  for (const input of [...document.querySelectorAll('[name=mode]'), other, $('share')]) input.addEventListener('input', showSamples);
  for (const link of shots.querySelectorAll('.frame:not([href]):has(img)')) link.href = link.querySelector('img').src;
  let figure = null;  // of the sample that is shown large; its links are made again with each step
  const caption = link => {
    figure = link.closest('figure');
    return `${link.dataset.step ?? ''} ${figure.querySelector('figcaption').textContent}`;
  };
  const enlarge = viewer(caption, (_, by, rows) => {
    slider.value = Number(slider.value) + by;
    if (by) showSamples();
    return shots.children[[...shots.children].indexOf(figure) + rows]?.querySelector('.now[href]');
  });
  shots.addEventListener('click', event => enlarge(event, event.target.closest('a.frame[href]')));
}

// ---------------------------------------------------------------- curves
const plots = new Map();
export let latest = data, range = null;
const shared = {
  share: () => Number($('smooth').value) / 100, log: () => $('log-scale').checked, marks: () => latest.marks ?? [],
  texts: words.curves, zoomed: (from, to) => { range = from === null ? null : [from, to]; showCurves(); },
};

// The first diagram marks the sets of samples alone; all events are marked in those below More.
const sets = () => samples.steps.map(step => [step, words.samples]);

// The diagrams of the steps of `range`: those of the page itself, cut, where live.js does not ask a server.
export const source = {
  async diagrams() {
    const within = curve => {
      const isInside = (_, index) => curve.steps[index] >= range[0] && curve.steps[index] <= range[1];
      return {...curve, ...Object.fromEntries(['steps', 'low', 'high', 'mean'].map(kind => [kind, curve[kind].filter(isInside)]))};
    };
    return {...data, diagrams: data.diagrams.map(each => ({...each, curves: range ? each.curves.map(within) : each.curves}))};
  },
};

export async function showCurves() {
  latest = await source.diagrams() ?? latest;
  draw();
}

export function draw() {
  const found = latest.diagrams ?? [], first = (found.find(each => each.title === 'Loss') ?? found[0])?.title;
  $('curve-control').hidden = !found.length;
  if ($('no-curves')) $('no-curves').hidden = found.length > 0;
  for (const {title, exact, curves, left_out} of found) {
    if (!plots.has(title)) plots.set(title, title === first ? new Diagram($('plots'), title, {...shared, marks: sets}) : new Diagram($('more-plots'), title, shared));
    plots.get(title).show(curves, exact, left_out.length ? words.not_drawn.replace('{names}', left_out.join(', ')) : '');
  }
}

for (const name of ['smooth', 'log-scale']) $(name).addEventListener('input', draw);
$('whole').addEventListener('click', () => shared.zoomed(null));
document.addEventListener('themechange', () => { plots.forEach(plot => { plot.names = ''; }); draw(); });
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => document.dispatchEvent(new Event('themechange')));
if (!here) showCurves();
// A link to a part that is folded away opens it.
const unfold = () => document.querySelector(location.hash.length > 1 ? `[id="${CSS.escape(decodeURIComponent(location.hash.slice(1)))}"]` : 'main')?.closest('details')?.setAttribute('open', '');
addEventListener('hashchange', unfold), unfold();
$('more').addEventListener('toggle', () => { if ($('tail')) $('tail').scrollTop = $('tail').scrollHeight; });
if ($('tail')) $('tail').scrollTop = $('tail').scrollHeight;
