// The page of one run, live and as a report: samples are compared, curves are zoomed. What is new on a server: live.js.
import {Diagram} from './curves/curves.js';
import {viewer} from './viewer.js';

export const $ = name => document.getElementById(name);
export const data = JSON.parse($('data').textContent);
export const {here, words} = data; // here: the page's address; empty: all that it shows is in it

// ---------------------------------------------------------------- samples
const samples = data.samples,
  shots = $('shots'),
  slider = $('step'),
  stepLinks = document.querySelector('#steps .marks');
const stepName = step => (step ? words.at.replace('{step}', step.toLocaleString('en')) : words.alone);
const address = (file, side) =>
  here ? `${here}/samples/${encodeURIComponent(file)}${side ? `?side=${side}` : ''}` : file;

// The image stays until the next one is there, so that the slider moves through them without a flash.
function showIn(link, row, at) {
  const file = row.files[at];
  link.dataset.step = stepName(samples.steps[at]);
  if (!file) {
    link.removeAttribute('href');
    return link.replaceChildren(
      Object.assign(document.createElement('span'), {className: 'blank faint', textContent: words.missing}),
    );
  }
  const image = link.querySelector('img') ?? new Image();
  if (image.isConnected && !calm.matches) fade(link, image);
  Object.assign(image, {src: address(file, shots.dataset.side), alt: `${link.dataset.step}: ${row.prompt}`});
  link.href = address(file, 0);
  if (!image.isConnected) link.replaceChildren(image);
}

// The image before lies over the new one for a moment, and fades.
const calm = matchMedia('(prefers-reduced-motion: reduce)');
function fade(link, image) {
  link.querySelector('.before')?.remove();
  const before = Object.assign(image.cloneNode(), {className: 'before', alt: ''});
  link.append(before);
  before.animate({opacity: [1, 0]}, 150).finished.then(
    () => before.remove(),
    () => {},
  );
}

function showSamples() {
  const at = Number(slider.value),
    step = samples.steps[at];
  slider.hidden = samples.steps.length < 2;
  $('shown').textContent = slider.ariaValueText = stepName(step);
  document.querySelector('.alone').hidden = step > 0;
  [...stepLinks.children].forEach((mark, place) =>
    place === at ? mark.setAttribute('aria-current', 'true') : mark.removeAttribute('aria-current'),
  );
  for (const figure of shots.children) {
    const row = samples.rows[figure.dataset.row];
    showIn(figure.querySelector('.now'), row, at);
    for (const near of here ? [at - 1, at + 1] : [])
      if (row.files[near]) new Image().src = address(row.files[near], shots.dataset.side);
  }
}

export function takeSamples(event) {
  const step = event.step;
  if (!Number.isInteger(step)) return;
  if (!samples.steps.length) return location.reload(); // the first ones: the page has no place for them yet
  const wasLast = Number(slider.value) === samples.steps.length - 1;
  let at = samples.steps.indexOf(step);
  if (at < 0) {
    at = samples.steps.findIndex(each => each > step);
    at = at < 0 ? samples.steps.length : at;
    samples.steps.splice(at, 0, step);
    samples.rows.forEach(row => row.files.splice(at, 0, null));
    const mark = Object.assign(document.createElement('a'), {
      href: `${here}?step=${step}#samples`,
      textContent: step.toLocaleString('en'),
    });
    stepLinks.insertBefore(mark, stepLinks.children[at] ?? null);
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
  slider.hidden = samples.steps.length < 2;
  stepLinks.hidden = false;
  slider.addEventListener('input', showSamples);
  stepLinks.classList.toggle('ends', samples.steps.length > 12);
  stepLinks.addEventListener('click', event => {
    const mark = event.target.closest('a');
    if (!mark || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    slider.value = [...stepLinks.children].indexOf(mark);
    showSamples();
  });
  for (const link of shots.querySelectorAll('.frame:not([href]):has(img)')) link.href = link.querySelector('img').src;
  let figure = null; // of the sample that is shown large
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
export let latest = data,
  range = null;
const shared = {
  share: () => Number($('smooth').value) / 100,
  log: () => $('log-scale').checked,
  marks: () => latest.marks ?? [],
  texts: words.curves,
  zoomed: (from, to) => {
    range = from === null ? null : [from, to];
    showCurves();
  },
};

// The first diagram marks the sets of samples alone; all events are marked in those below More.
const sets = () => samples.steps.map(step => [step, words.samples]);

// The diagrams of the steps of `range`: those of the page itself, cut, where live.js does not ask a server.
export const source = {
  async diagrams() {
    const within = curve => {
      const isInside = (_, index) => curve.steps[index] >= range[0] && curve.steps[index] <= range[1];
      return {
        ...curve,
        ...Object.fromEntries(['steps', 'low', 'high', 'mean'].map(kind => [kind, curve[kind].filter(isInside)])),
      };
    };
    return {
      ...data,
      diagrams: data.diagrams.map(each => ({...each, curves: range ? each.curves.map(within) : each.curves})),
    };
  },
};

export async function showCurves() {
  latest = (await source.diagrams()) ?? latest;
  draw();
}

export function draw() {
  const found = latest.diagrams ?? [],
    first = (found.find(each => each.title === 'Loss') ?? found[0])?.title;
  $('curve-control').hidden = !found.length;
  if ($('no-curves')) $('no-curves').hidden = found.length > 0;
  for (const {title, exact, curves, left_out} of found) {
    if (!plots.has(title))
      plots.set(
        title,
        title === first
          ? new Diagram($('plots'), title, {...shared, marks: sets})
          : new Diagram($('more-plots'), title, shared),
      );
    plots
      .get(title)
      .show(curves, exact, left_out.length ? words.not_drawn.replace('{names}', left_out.join(', ')) : '');
  }
}

for (const name of ['smooth', 'log-scale']) $(name).addEventListener('input', draw);
$('whole').addEventListener('click', () => shared.zoomed(null));
document.addEventListener('themechange', () => {
  plots.forEach(plot => {
    plot.names = '';
  });
  draw();
});
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () =>
  document.dispatchEvent(new Event('themechange')),
);
if (!here) showCurves();
// A link to a part that is folded away opens it.
const unfold = () =>
  document
    .querySelector(
      location.hash.length > 1 ? `[id="${CSS.escape(decodeURIComponent(location.hash.slice(1)))}"]` : 'main',
    )
    ?.closest('details')
    ?.setAttribute('open', '');
addEventListener('hashchange', unfold);
unfold();
$('more').addEventListener('toggle', () => {
  if ($('tail')) $('tail').scrollTop = $('tail').scrollHeight;
});
if ($('tail')) $('tail').scrollTop = $('tail').scrollHeight;
