// The page of one run, live and as a report: samples are compared, curves are zoomed. What is new on a server: live.js.
import {Diagram} from './curves/curves.js';
import {all, around, one, viewer} from './viewer.js';

/** @type {RunData} */
export const data = JSON.parse(one('#data').textContent);
export const {here, words} = data; // here: the page's address; empty: all that it shows is in it

// ---------------------------------------------------------------- samples
const samples = data.samples;
const [shots, stepLinks] = [one('#shots'), one('#steps .marks')]; // where there are samples
/** @type {HTMLInputElement} */
const slider = one('#step');
/** @param {number} step */
const stepName = step => (step ? words.at.replace('{step}', step.toLocaleString('en')) : words.alone);
/** @type {(file: string, side?: string | number) => string} */
const address = (file, side) =>
  here ? `${here}/samples/${encodeURIComponent(file)}${side ? `?side=${side}` : ''}` : file;

/**
 * The image stays until the next one is there, so that the slider moves through them without a flash.
 * @param {HTMLAnchorElement} link
 * @param {SampleRow} row
 * @param {number} at
 */
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

const calm = matchMedia('(prefers-reduced-motion: reduce)');
/**
 * The image before lies over the new one for a moment, and fades.
 * @param {HTMLElement} link
 * @param {HTMLImageElement} image
 */
function fade(link, image) {
  link.querySelector('.before')?.remove();
  const before = /** @type {HTMLImageElement} */ (image.cloneNode());
  Object.assign(before, {className: 'before', alt: ''});
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
  one('#shown').textContent = slider.ariaValueText = stepName(step);
  one('.alone').hidden = step > 0;
  [...stepLinks.children].forEach((mark, place) =>
    place === at ? mark.setAttribute('aria-current', 'true') : mark.removeAttribute('aria-current'),
  );
  for (const figure of all('figure', shots)) {
    const row = samples.rows[Number(figure.dataset.row)];
    showIn(one('.now', figure), row, at);
    for (const file of here ? [row.files[at - 1], row.files[at + 1]] : [])
      if (file) new Image().src = address(file, shots.dataset.side);
  }
}

/** @param {RunEvent} event */
export function takeSamples(event) {
  const step = event.step;
  if (typeof step !== 'number') return;
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
    slider.max = String(samples.steps.length - 1);
  }
  (event.files ?? []).forEach((file, index) => {
    const row = samples.rows.find(each => each.index === Number(/_(\d+)\.\w+$/.exec(file)?.[1] ?? index));
    if (row) row.files[at] = file;
  });
  if (wasLast) slider.value = slider.max;
  showSamples();
}

if (slider) {
  slider.hidden = samples.steps.length < 2;
  stepLinks.hidden = false;
  slider.addEventListener('input', showSamples);
  stepLinks.classList.toggle('ends', samples.steps.length > 12);
  stepLinks.addEventListener('click', event => {
    const mark = around(event, 'a');
    if (!mark || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    slider.value = String([...stepLinks.children].indexOf(mark));
    showSamples();
  });
  for (const image of all('.frame:not([href]) > img', shots))
    image.parentElement?.setAttribute('href', image.getAttribute('src') ?? '');
  /** @type {Element | null} */
  let figure = null; // of the sample that is shown large
  const enlarge = viewer(
    link => {
      figure = link.closest('figure');
      return `${link.dataset.step ?? ''} ${figure?.querySelector('figcaption')?.textContent}`;
    },
    (_, by, rows) => {
      slider.value = String(Number(slider.value) + by);
      if (by) showSamples();
      const figures = all('figure', shots);
      return figures.find((_, place) => figures[place - rows] === figure)?.querySelector('a.now[href]');
    },
  );
  shots.addEventListener('click', event => enlarge(event, around(event, 'a.frame[href]')));
}

// ---------------------------------------------------------------- curves
/** @type {[HTMLInputElement, HTMLInputElement]} */
const [smooth, logScale] = [one('#smooth'), one('#log-scale')];
/** @type {Map<string, Diagram>} */
const plots = new Map();
/** @type {Curves} */
export let latest = data;
/** @type {[from: number, to: number] | null} */
export let range = null;
/** @type {import('./curves/curves.js').Shared} */
const shared = {
  share: () => Number(smooth.value) / 100,
  log: () => logScale.checked,
  marks: () => latest.marks ?? [],
  texts: words.curves,
  zoomed: (from, to = 0) => {
    range = from === null ? null : [from, to];
    showCurves();
  },
};

// The first diagram marks the sets of samples alone; all events are marked in those below More.
/** @returns {Mark[]} */
const sets = () => samples.steps.map(step => [step, words.samples]);

// The diagrams of the steps of `range`: those of the page itself, cut, where live.js does not ask a server.
export const source = {
  /** @returns {Promise<Curves | undefined>} */
  async diagrams() {
    const [from, to] = range ?? [-Infinity, Infinity];
    /** @type {(curve: Curve) => Curve} */
    const within = curve => {
      /** @type {(_: unknown, index: number) => boolean} */
      const isInside = (_, index) => curve.steps[index] >= from && curve.steps[index] <= to;
      const [low, high, mean] = [curve.low, curve.high, curve.mean].map(values => values.filter(isInside));
      return {...curve, steps: curve.steps.filter(isInside), low, high, mean};
    };
    return {...data, diagrams: data.diagrams?.map(each => ({...each, curves: each.curves.map(within)}))};
  },
};

export async function showCurves() {
  latest = (await source.diagrams()) ?? latest;
  draw();
}

export function draw() {
  const found = latest.diagrams ?? [],
    first = (found.find(each => each.title === 'Loss') ?? found[0])?.title;
  one('#curve-control').hidden = !found.length;
  one('#no-curves')?.toggleAttribute('hidden', found.length > 0);
  for (const {title, exact, curves, left_out} of found) {
    const [place, marks] = title === first ? ['#plots', sets] : ['#more-plots', shared.marks];
    const plot = plots.get(title) ?? new Diagram(one(place), title, {...shared, marks});
    plots.set(title, plot);
    plot.show(curves, exact, left_out.length ? words.not_drawn.replace('{names}', left_out.join(', ')) : '');
  }
}

for (const control of [smooth, logScale]) control.addEventListener('input', draw);
one('#whole').addEventListener('click', () => shared.zoomed(null));
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
const showEnd = () => one('#tail')?.scrollTo(0, one('#tail').scrollHeight);
one('#more').addEventListener('toggle', showEnd);
showEnd();
